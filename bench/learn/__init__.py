"""What is learned from a text in equal time."""
