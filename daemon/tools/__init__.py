"""Doctor, calibration, export, replay."""
