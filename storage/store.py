"""All repositories of one database."""

from contextlib import suppress
from pathlib import Path

from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseUnusable, SearchIndexDamaged, StorageError
from pocketllm.storage.migrate import current_revision, migrate
from pocketllm.storage.migrations import HEAD
from pocketllm.storage.repositories.adapters import AdapterStore
from pocketllm.storage.repositories.deletions import DeletionStore
from pocketllm.storage.repositories.files import FileStore
from pocketllm.storage.repositories.folders import FolderStore
from pocketllm.storage.repositories.jobs import JobStore, belongs_to
from pocketllm.storage.repositories.passages import PassageStore
from pocketllm.storage.repositories.preferences import PreferenceStore
from pocketllm.storage.repositories.quotas import Quota
from pocketllm.storage.repositories.reports import ReportStore
from pocketllm.storage.repositories.runs import RunWindowStore
from pocketllm.storage.repositories.step_log import StepLog
from pocketllm.storage.repositories.texts import TextStore
from pocketllm.storage.repositories.tokens import TokenStore

#: A worker that waits for another program's lock loses nothing. Less than the STALL_SECONDS after which it is killed.
_WORKER_BUSY_SECONDS = 60


class Store:
    """The repositories of one database. Thread-safe."""

    def __init__(self, database: Database, quota: Quota | None = None) -> None:
        """quota: of each app; None: apps may store anything."""
        self._database = database
        self.texts = TextStore(database, quota)
        self.passages = PassageStore(database)
        self.jobs = JobStore(database, quota)
        self.step_log = StepLog(database)
        self.adapters = AdapterStore(database)
        self.reports = ReportStore(database)
        self.runs = RunWindowStore(database)
        self.preferences = PreferenceStore(database)
        self.tokens = TokenStore(database)
        self.files = FileStore(database, quota)
        self.folders = FolderStore(database)
        self.deletions = DeletionStore(database)
        database.mend_index = self.passages.mend

    @classmethod
    def open(cls, path: Path, quota: Quota | None = None) -> "Store":
        """Open the daemon's store; creates or migrates the database. Raises StorageError."""
        store = cls(database := Database(path), quota)
        try:
            with suppress(SearchIndexDamaged):  # mended
                database.check()
            migrate(database)
        except Exception:
            store.close()
            raise
        return store

    @classmethod
    def open_unchecked(cls, path: Path) -> "Store":
        """Open a store that is neither checked nor migrated, but made if the file is empty. Raises StorageError."""
        database = Database(path, durable=False)
        try:
            with database.read() as session:
                revision = current_revision(session.connection())
            if revision is None:
                migrate(database)
            elif revision != HEAD:
                raise DatabaseUnusable(
                    f"The database {path} was written by another version of PocketLLM. "
                    "Run `pocketllm serve` once: it upgrades an older database."
                )
        except StorageError:
            database.close()
            raise
        return cls(database)

    @classmethod
    def open_for_worker(cls, path: Path, job_id: str, start: int) -> "Store":
        """Open the store of a running daemon, which has migrated it, for one worker.

        start: the number of the job's start that it is of. Every write raises Superseded once the job is not this
        worker's any more.
        """
        return cls(Database(path, busy_seconds=_WORKER_BUSY_SECONDS, check=belongs_to(job_id, start)))

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._database.close()
