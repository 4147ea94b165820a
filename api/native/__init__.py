"""PocketLLM's own routes."""
