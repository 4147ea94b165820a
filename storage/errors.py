"""Storage's exceptions.

StorageError
├── AlreadyThere
├── DatabaseTooNew
├── NotFound
├── StorageTrouble
│   ├── DatabaseFull
│   ├── DatabaseLocked
│   └── DatabaseUnusable
├── Superseded
└── WrongState
    ├── HasDeletedText
    └── NotYet
"""


class StorageError(Exception):
    """Storage could not do what was requested."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class AlreadyThere(StorageError):
    """There is something with this name already."""


class DatabaseTooNew(StorageError):
    """This database is of a newer PocketLLM, or of one before the first release. Install that, or move it away."""


class StorageTrouble(StorageError):
    """The database cannot be read or written. It may be usable again later."""


class DatabaseFull(StorageTrouble):
    """There is no room for the database."""


class DatabaseLocked(StorageTrouble):
    """Another program holds the database's lock."""


class DatabaseUnusable(StorageTrouble):
    """The database file cannot be opened or is damaged."""


class Superseded(StorageError):
    """The job of this worker was paused, has ended, or was given to another worker."""


class NotFound(StorageError):
    """There is nothing with this id."""


class WrongState(StorageError):
    """The job is not in a state that allows this."""


class HasDeletedText(WrongState):
    """The adapter has learned text that was deleted since."""


class NotYet(WrongState):
    """The job is not in a state that allows this yet. Ask again later."""
