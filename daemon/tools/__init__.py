"""Tools: doctor, calibration, backup, export."""
