"""A SQLite database in WAL mode: engine, transactions, and what is said when SQLite fails."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, QueuePool, event
from sqlalchemy.engine import ExceptionContext
from sqlmodel import Session, create_engine

from pocketllm.storage.errors import DatabaseFull, DatabaseLocked, DatabaseUnusable, SearchIndexDamaged, StorageTrouble

BUSY_TIMEOUT_SECONDS = 15
#: SQLite needs some pages for a transaction; with less free space, an I/O error is one of want of room.
_LEAST_FREE_BYTES = 1_000_000
_DAMAGED = (
    "Restore a backup with `pocketllm restore FILE`. Without one, move the file away and keep it: the daemon then "
    "creates a new database without texts, and moves the adapters to the folder set-aside."
)
_GONE = (
    "was moved, replaced or deleted while it was in use; what is sent now is not stored. Put the file back, or restart "
    "the daemon: it uses the file that is there then, or creates a new database without texts."
)
#: The low byte of SQLite's extended result codes is the primary code.
_PRIMARY_CODE = 0xFF


class Database:
    """The engine and its transactions. They raise StorageTrouble where SQLite fails, or the path names another file.

    durable: committed transactions survive power loss (`synchronous=FULL`), for the daemon and the worker. Commands
    that read or scan use `NORMAL`. busy_seconds: how long to wait for another program's lock. check: called at each
    write's start, under its lock; what it raises prevents it.
    """

    def __init__(
        self,
        path: Path,
        *,
        durable: bool = True,
        busy_seconds: float = BUSY_TIMEOUT_SECONDS,
        check: Callable[[Session], object] = lambda session: None,
    ) -> None:
        self.path, self._check, self._busy_seconds = path, check, busy_seconds
        #: Writes a damaged search index anew; returns whether it was damaged.
        self.mend_index: Callable[[], bool] = lambda: False
        self._file: tuple[int, int] | None = None  #: device and inode; None before it is first opened
        self.engine = _create_engine(path, self._connect, synchronous="FULL" if durable else "NORMAL")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session with a consistent snapshot; its objects stay usable afterwards."""
        self._check_file()
        with self._mending(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that holds the write lock from its start; commits at the end, rolls back on an exception."""
        self._check_file()
        with self._mending(), Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"begin": "BEGIN IMMEDIATE"})
            self._check(session)
            yield session
            session.commit()
        self._check_file()  # before the caller acknowledges what it has stored

    @contextmanager
    def _mending(self) -> Iterator[None]:
        try:
            yield
        except DatabaseUnusable as error:
            if self.mend_index():
                raise SearchIndexDamaged from error
            raise

    def check(self) -> None:
        """Look for damage. Raises DatabaseUnusable or SearchIndexDamaged. Takes about a second for each 300 MB."""
        with self.read() as session:
            found = session.connection().exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise DatabaseUnusable(f"The database {self.path} cannot be used: {found}. {_DAMAGED}")

    def truncate_log(self) -> bool:
        """Checkpoint and truncate the write-ahead log; False, soon, while another connection is reading."""
        connection = self.engine.raw_connection()  # outside of any transaction
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA busy_timeout = 100")
            (busy, _, _) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
        except sqlite3.DatabaseError as error:
            raise trouble(self.path, error) from error
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {int(1000 * self._busy_seconds)}").close()
            connection.close()

    def rewrite(self, first: str) -> bool:
        """Run a statement, then write every page anew (VACUUM); False, soon, while another connection is reading.

        Takes room for two more copies: one in a nameless file beside the database, and one in the log.
        """
        if not self.truncate_log():
            return False
        folder = str(self.path.parent).replace("'", "''")
        with closing(self._connect()) as connection:
            connection.isolation_level = None
            try:
                for statement in (f"PRAGMA temp_store_directory = '{folder}'", "PRAGMA secure_delete = ON", first):
                    connection.execute(statement)
                connection.execute("VACUUM")
            except sqlite3.DatabaseError as error:
                raise trouble(self.path, error) from error
        return self.truncate_log()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self.engine.dispose()

    def _connect(self) -> sqlite3.Connection:
        """Only the first connection creates a missing file."""
        address = f"{self.path.absolute().as_uri()}?mode={'rw' if self._file else 'rwc'}"
        connection = sqlite3.connect(address, self._busy_seconds, uri=True, check_same_thread=False)
        self._file = self._file or _file_at(self.path)
        return connection

    def _check_file(self) -> None:
        if self._file and self._file != _file_at(self.path):
            raise DatabaseUnusable(f"The database {self.path} {_GONE}")


def _file_at(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        return (about := path.stat()).st_dev, about.st_ino
    return None


def _create_engine(path: Path, connect: Callable[[], sqlite3.Connection], *, synchronous: str) -> Engine:
    # hide_parameters: otherwise the error of a failed INSERT would contain the owner's text.
    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # The driver begins transactions too late for BEGIN IMMEDIATE, so `begin` below does.
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "foreign_keys = ON",
            # Overwrites deleted texts in the file.
            "secure_delete = ON",
            # Sorted texts are not written to files elsewhere.
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    @event.listens_for(engine, "handle_error")
    def explain(context: ExceptionContext) -> None:
        error = context.original_exception
        ours = (sqlite3.IntegrityError, sqlite3.ProgrammingError)  # of the statement, not of the file
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, ours):
            raise trouble(path, error) from error

    return engine


def trouble(path: Path, error: sqlite3.Error) -> StorageTrouble:
    """SQLite's error as a sentence that says what to do (codes: https://sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseLocked(f"Another program has locked the database {path}. Close that program, then try again.")
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
        return DatabaseFull(f"The disk is too full for the database {path}. Free some space; no stored data is lost.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        advice = "Check that the disk works and that this user may write there."
    else:
        advice = _DAMAGED
    return DatabaseUnusable(f"The database {path} cannot be used: {error}. {advice}")


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LEAST_FREE_BYTES
    except OSError:
        return False
