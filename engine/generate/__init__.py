"""Generation: tokenizer, sampling, streaming text, and reports on a model."""
