"""Examples, and the batches that a step takes."""
