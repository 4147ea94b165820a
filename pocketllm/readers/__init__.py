"""Readers of notes, mail and chat exports: each turns a file into examples that the daemon accepts.

`walk` finds the files, `recognise` tells their kind, and `reading` calls the reader for it, which yields examples and
what it left out. Nothing here talks to the daemon or prints. A broken file ends the reading of that file alone.
"""
