"""Readers of notes, mail and chat exports: each turns a file into examples that the daemon accepts.

`walk` finds the files, `reading` recognises their kinds and calls the reader for each, which yields examples and what
it left out. Nothing here talks to the daemon or prints. A broken file ends the reading of that file alone.
"""
