"""What is learned from labels in equal time."""
