"""Finds the files in folders."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

#: Folders of programs, not of their users.
SKIPPED_FOLDERS = {"node_modules", "__pycache__", "$RECYCLE.BIN", "System Volume Information"}
SAME_FILE = "a second name (a link) for the same file or folder"
OUTSIDE = "a link that leads outside the folder"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or folder, named by its path below the folder that the owner gave."""

    path: Path
    name: str
    named: bool = False  #: the owner gave its path; else it was found in a folder
    folder: bool = False
    version: str = ""  #: another one once the file has changed
    changed_at: float = 0.0  #: seconds since the epoch
    device: int = 0  #: of its file system
    reason: str = ""  #: why it cannot be read


def walk(paths: list[Path]) -> Iterator[Entry]:
    """Yield the files below paths, each once, in a fixed order. No file is opened.

    Hidden files and folders are left out unless the owner gave their path.
    """
    seen = set[int]()
    for path in paths:
        entry = _inspected(Entry(path=path, name=_printable_name(path.name), named=True), seen)
        if entry.folder:
            yield from below(path, seen)
        else:
            yield entry


def below(folder: Path, seen: set[int] | None, ignored: Callable[[str], bool] = lambda name: False) -> Iterator[Entry]:
    """Yield the files in a folder, but for links out of it, and what is ignored. ignored: of a folder's name with "/".

    seen: what was yielded already, which is left out; None: files come under each of their names, and folders once.
    Not recursive, since folders may be nested deeper than Python's call stack.
    """
    root, waiting, folders_seen = folder.resolve(), [(folder, "")], set[int]()
    while waiting:
        folder, prefix = waiting.pop()
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            yield Entry(path=folder, name=prefix or str(folder), reason=f"cannot be opened: {error.strerror}")
            continue
        folders = []
        for path in paths:
            entry = Entry(path=path, name=prefix + _printable_name(path.name))
            if path.name.startswith(".") or path.name in SKIPPED_FOLDERS:
                yield replace(entry, reason="hidden, or a program's folder")
                continue
            entry = _inspected(entry, folders_seen if seen is None else seen, files=seen is not None)
            if ignored(f"{entry.name}/" if entry.folder else entry.name):
                continue
            if not entry.reason and path.is_symlink() and not path.resolve().is_relative_to(root):
                yield replace(entry, reason=OUTSIDE)
            elif entry.folder:
                folders.append((path, f"{entry.name}/"))
            else:
                yield entry
        waiting += reversed(folders)


def _inspected(entry: Entry, seen: set[int], *, files: bool = True) -> Entry:
    """Return an entry with its type and version, or with the reason why it cannot be read or was read before."""
    try:
        found = entry.path.stat()
    except OSError as error:
        return replace(entry, reason=f"cannot be opened: {error.strerror}")
    key = found.st_dev << 64 | found.st_ino
    if files or stat.S_ISDIR(found.st_mode):
        if key in seen:
            return replace(entry, reason=SAME_FILE)
        seen.add(key)
    return replace(
        entry,
        folder=stat.S_ISDIR(found.st_mode),
        version=f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}",
        changed_at=found.st_mtime,
        device=found.st_dev,
    )


def _printable_name(name: str) -> str:
    """Return a file's name as text that can be stored: names are bytes, not always UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
