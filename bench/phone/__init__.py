"""Nights of a phone that sleeps, and its installed service under the real runit."""
