"""The `pocketllm` command."""
