"""What is learned from labels: in equal time, and from a few by the daemon."""
