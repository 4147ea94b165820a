"""Ours against exact references."""
