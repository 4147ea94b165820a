"""Whether a job may run: sensors, and the gate that judges their readings."""
