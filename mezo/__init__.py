"""MeZO (Malladi et al., arXiv 2305.17333): learning by forward passes only."""
