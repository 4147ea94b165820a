"""Readers of what people have: notes, mail and chat exports become examples as the daemon takes them.

`walk` finds files, `recognise` looks at what each is, and `reading` has the reader for it yield examples and what was
left out. Nothing here asks the daemon or prints, and nothing that a file holds ends more than the reading of that file.
"""
