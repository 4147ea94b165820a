"""Bytes and seconds of a job, from shapes and this device's calibration. Needs no torch."""
