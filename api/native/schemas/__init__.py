"""The documents that PocketLLM's own routes take and return."""
