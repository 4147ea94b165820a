"""Writes files atomically: under a name stands the whole new file, or the old one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pocketllm.daemon.leftovers import scratch_prefix
from pocketllm.errors import CommandError


def check_target(path: Path, *, force: bool) -> None:
    """Check that a file can be written, before any work is done. Raises CommandError."""
    if path.is_dir():
        raise CommandError(f"{path} is a folder. Give a file name.")
    if not path.parent.is_dir():
        raise CommandError(f"There is no folder {path.parent}. Create it first.")
    if (path.exists() or path.is_symlink()) and not force:
        raise CommandError(f"{path} already exists. Give another name, or replace it with --force.")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, readable by its owner alone. It gets its name when the block succeeds; else it is deleted."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=scratch_prefix(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        Path(scratch).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(scratch).unlink()
        raise
