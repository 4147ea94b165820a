"""Files that commands write: under their name stands all of it or what stood there before."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pocketllm.cli.errors import CommandError


def check_target(path: Path, *, force: bool) -> None:
    """Refuse, before anything is asked for, a file that cannot be written. Raises CommandError."""
    if path.is_dir():
        raise CommandError(f"{path} is a folder. Give the name of a file.")
    if not path.parent.is_dir():
        raise CommandError(f"There is no folder {path.parent}. Make it first.")
    if (path.exists() or path.is_symlink()) and not force:
        raise CommandError(f"{path} is there already. Give another name, or --force to replace it.")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which only its owner may read. It takes its name when the block ends well, else it is gone."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".pocketllm-")
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
