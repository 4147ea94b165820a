"""A language model within a memory budget, streamed a layer at a time. No database, no HTTP, no clock of its own."""
