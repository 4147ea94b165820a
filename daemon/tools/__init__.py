"""Tools: doctor, calibration, export, replay."""
