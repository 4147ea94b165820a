"""What learning costs elsewhere."""
