"""Storage's exceptions.

StorageError
├── NotFound
├── QuotaExceeded
├── StorageTrouble
│   ├── DatabaseFull
│   ├── DatabaseLocked
│   ├── DatabaseUnusable
│   └── SearchIndexDamaged
├── Superseded
└── WrongState
    ├── HasDeletedText
    └── NotYet
"""


class StorageError(Exception):
    """Storage could not do what was requested."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class StorageTrouble(StorageError):
    """The database cannot be read or written. Try again later."""


class DatabaseFull(StorageTrouble):
    """The disk is too full for the database."""


class DatabaseLocked(StorageTrouble):
    """Another program has locked the database."""


class DatabaseUnusable(StorageTrouble):
    """The database file cannot be opened or is damaged."""


class SearchIndexDamaged(StorageTrouble):
    """The search index was damaged, and has been written anew from the texts. Try again."""


class Superseded(StorageError):
    """This worker's job was paused, has ended, or was given to another worker."""


class NotFound(StorageError):
    """There is nothing with this id."""


class QuotaExceeded(StorageError):
    """The app has stored as much as it may."""


class WrongState(StorageError):
    """What is there does not allow this."""


class HasDeletedText(WrongState):
    """The adapter was trained on text that was deleted since."""


class NotYet(WrongState):
    """The job is not in a state that allows this yet. Try again later."""
