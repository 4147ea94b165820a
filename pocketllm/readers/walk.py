"""Finding the files below what was named."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

#: Folders of programs, not of their users.
LEFT_OUT = {"node_modules", "__pycache__", "$RECYCLE.BIN", "System Volume Information"}
SAME_FILE = "the same file or folder under another name (a link)"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file, and what to call it: its path below the folder that was named."""

    path: Path
    name: str
    named: bool = False  #: by its owner, not found in a folder
    folder: bool = False
    size: int = 0  #: bytes
    reason: str = ""  #: why it is not to be read


def walk(paths: list[Path]) -> Iterator[Entry]:
    """Yield the files below paths, each once, in an order that does not change.

    What is hidden is left out unless it was named itself. Nothing is opened.
    """
    seen: set[tuple[int, int]] = set()
    for path in paths:
        entry = looked_at(Entry(path=path, name=printable_name(path.name), named=True), seen)
        if entry.folder:
            yield from below(path, seen)
        else:
            yield entry


def below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Entry]:
    """Yield what is in a folder. Without recursion: folders may be nested deeper than Python's calls."""
    waiting = [(folder, "")]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            yield Entry(path=folder, name=prefix or str(folder), reason=f"cannot be opened: {error.strerror}")
            continue
        folders = []
        for path in paths:
            entry = Entry(path=path, name=prefix + printable_name(path.name))
            if path.name.startswith(".") or path.name in LEFT_OUT:
                yield replace(entry, reason="hidden, or of a program")
                continue
            entry = looked_at(entry, seen)
            if entry.folder:
                folders.append((path, f"{entry.name}/"))
            else:
                yield entry
        waiting += reversed(folders)


def looked_at(entry: Entry, seen: set[tuple[int, int]]) -> Entry:
    """Return an entry with what it is, and with a reason not to read it when it was seen before or is not there."""
    try:
        found = entry.path.stat()
    except OSError as error:
        return replace(entry, reason=f"cannot be opened: {error.strerror}")
    key = found.st_dev, found.st_ino
    if key in seen:
        return replace(entry, reason=SAME_FILE)
    seen.add(key)
    return replace(entry, folder=stat.S_ISDIR(found.st_mode), size=found.st_size)


def printable_name(name: str) -> str:
    """Return a file's name as text that can be stored: names are bytes, and need not be UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
