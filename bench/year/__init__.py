"""A year of a phone on a fake clock."""
