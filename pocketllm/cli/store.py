"""Reads the database without a daemon. Nothing is migrated and no row changes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pocketllm.cli.errors import CommandError

if TYPE_CHECKING:
    from pocketllm.storage.store import Store


@contextmanager
def stored(path: Path) -> "Iterator[Store]":
    """Yield the store in a database file. Raises CommandError when it is missing or of another version."""
    if not path.is_file():
        raise CommandError(f"There is no database {path}. Give the daemon's data folder with --data-dir.")
    from pocketllm.storage.errors import StorageError
    from pocketllm.storage.store import Store

    try:
        with closing(Store.open_to_read(path)) as store:
            yield store
    except StorageError as error:
        raise CommandError(str(error)) from error
