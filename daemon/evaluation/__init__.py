"""What held-out text says of a result: promotion and report."""
