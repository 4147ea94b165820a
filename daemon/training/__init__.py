"""The worker: one job, from its texts to an adapter."""
