"""Evaluation on held-out text: promotion and report."""
