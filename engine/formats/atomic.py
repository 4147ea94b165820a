"""Files and folders that are there whole or not at all, whatever is killed, and whoever writes the same one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

#: How the names of the folders begin in which a file or folder is written; a killed writer leaves its own.
SCRATCH = ".pocketllm-"
#: A folder's name there between the two renames by which it is replaced.
REPLACED = ".replaced"


def scratch_prefix(target: Path) -> str:
    """How the names of the folders begin in which this file or folder is written."""
    return f"{SCRATCH}{target.name[:200]}-"


def final_name(name: str) -> str:
    """The name of what is written in a folder of this name; of all others, the name itself."""
    return name.removeprefix(SCRATCH).rpartition("-")[0] if name.startswith(SCRATCH) else name


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield where to write a file or a folder, where only the owner can read it. Then it is synced and replaces `path`;
    after an error it is removed.
    """
    with TemporaryDirectory(prefix=scratch_prefix(path), dir=path.parent) as scratch:
        written, replaced = Path(scratch, path.name), Path(scratch, REPLACED)
        yield written
        for one in (*written.rglob("*"), written):
            sync(one)
        try:
            if written.is_dir() and path.is_dir():  # only files can be replaced
                path.rename(replaced)
            written.rename(path)
        except BaseException:
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            raise
    with suppress(PermissionError):  # one may write to some folders and not read them
        sync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, readable by its owner alone; the rest is as with `atomic`."""
    with atomic(path) as scratch, open(scratch, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        yield file


def sync(path: Path) -> None:
    """Sync a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
