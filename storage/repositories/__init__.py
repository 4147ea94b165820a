"""Repositories: all queries, a module for each entity."""
