"""Text from tokens and tokens from the model."""
