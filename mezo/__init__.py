"""How to learn, by forward passes only. Pure: no database, no HTTP, no clock of its own."""
