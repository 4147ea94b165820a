"""Reads the database without a daemon. Nothing is migrated and no row changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pocketllm.errors import CommandError

if TYPE_CHECKING:
    from pocketllm.storage.store import Store


@contextmanager
def stored(path: Path) -> "Iterator[Store]":
    """Yield the store in a database file. Raises CommandError when it is missing or of another version."""
    if not path.is_file():
        raise CommandError(f"There is no database {path}. Give the daemon's data folder with --data-dir.")
    from pocketllm.storage.database import Database
    from pocketllm.storage.errors import StorageError
    from pocketllm.storage.migrate import current_revision
    from pocketllm.storage.migrations import HEAD
    from pocketllm.storage.store import Store

    database = Database(path, durable=False)
    try:
        with database.read() as session:
            revision = current_revision(session.connection())
        if revision != HEAD:
            raise CommandError(
                f"The database {path} was written by another version of PocketLLM. "
                "Run `pocketllm serve` once: it upgrades an older database."
            )
        yield Store(database)
    except StorageError as error:
        raise CommandError(str(error)) from error
    finally:
        database.close()
