"""One SQLite file in WAL mode: how it is opened, and the one way to a transaction."""

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

    `durable` means that a committed transaction survives power loss (`synchronous=FULL`): the daemon and the worker
    write so. Commands that only read do without (`NORMAL`).
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.engine = _create_engine(path, synchronous="FULL" if durable else "NORMAL")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent snapshot; its objects stay usable afterwards."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that holds the write lock from the start; commits at the end, rolls back on any exception."""
        with Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"begin": "BEGIN IMMEDIATE"})
            yield session
            session.commit()

    def truncate_log(self) -> None:
        """Fold the write-ahead log into the file and cut it to nothing, as far as no other process is reading."""
        connection = self.engine.raw_connection()  # outside of any transaction
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        finally:
            connection.close()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self.engine.dispose()


def _create_engine(path: Path, *, synchronous: str) -> Engine:
    # hide_parameters: the message of a failed INSERT would otherwise carry the owner's text into the log.
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(connection: SqliteConnection, _record: object) -> None:
        # The driver's own transaction handling begins too late for BEGIN IMMEDIATE; we say BEGIN ourselves.
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "foreign_keys = ON",
            # A deleted text is overwritten in the file, not just unlinked from the tree.
            "secure_delete = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's own errors on opening `path` into DatabaseUnusable, which says what to do."""
    try:
        yield
    except DatabaseError as error:
        raise DatabaseUnusable(
            f"The database {path} cannot be used: {error.orig}. Move it away to start afresh, "
            "or put a backup in its place."
        ) from error
