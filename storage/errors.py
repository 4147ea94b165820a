"""Storage's exceptions.

StorageError
├── AlreadyThere
├── DatabaseTooNew
├── DatabaseUnusable
├── NotFound
└── WrongState
"""


class StorageError(Exception):
    """Storage could not do what was requested."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class AlreadyThere(StorageError):
    """There is something with this name already."""


class DatabaseTooNew(StorageError):
    """This database was written by a newer PocketLLM. Install that version again, or move the file away."""


class DatabaseUnusable(StorageError):
    """The database file cannot be opened or is damaged."""


class NotFound(StorageError):
    """There is nothing with this id."""


class WrongState(StorageError):
    """The job is not in a state that allows this."""
