"""What is trained: LoRA adapters, or all weights."""
