"""The streamed model, and MeZO, which learns by its forward passes only. No database, no HTTP, no clock of its own."""
