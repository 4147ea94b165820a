"""A SQLite database in WAL mode: engine and transactions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as SqliteConnection

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session, create_engine

from pocketllm.storage.errors import DatabaseUnusable

BUSY_TIMEOUT_SECONDS = 15


class Database:
    """The engine and its transactions.

    durable: committed transactions survive power loss (`synchronous=FULL`), for the daemon and the worker. Commands
    that only read use `NORMAL`.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.engine = _create_engine(path, synchronous="FULL" if durable else "NORMAL")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session with a consistent snapshot; its objects stay usable afterwards."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that holds the write lock from its start; commits at the end, rolls back on an exception."""
        with Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"begin": "BEGIN IMMEDIATE"})
            yield session
            session.commit()

    def truncate_log(self) -> None:
        """Checkpoint and truncate the write-ahead log, as far as no other process is reading."""
        connection = self.engine.raw_connection()  # outside of any transaction
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        finally:
            connection.close()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self.engine.dispose()


def _create_engine(path: Path, *, synchronous: str) -> Engine:
    # hide_parameters: otherwise the error of a failed INSERT would contain the owner's text.
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(connection: SqliteConnection, _record: object) -> None:
        # The driver begins transactions too late for BEGIN IMMEDIATE, so `begin` below does.
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "foreign_keys = ON",
            # Overwrites deleted texts in the file.
            "secure_delete = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors on opening `path` into DatabaseUnusable."""
    try:
        yield
    except DatabaseError as error:
        raise DatabaseUnusable(
            f"The database {path} cannot be used: {error.orig}. Move it away to start afresh, "
            "or put a backup in its place."
        ) from error
