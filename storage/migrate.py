"""Bring a database file to the newest schema."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlmodel import SQLModel

from pocketllm.storage import tables as _tables  # noqa: F401 - which SQLModel.metadata then knows
from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseTooNew
from pocketllm.storage.migrations import HEAD


def migrate(database: Database) -> None:
    """Run the missing revisions in one transaction. Raises DatabaseTooNew when the file is ahead of the program."""
    with database.write() as session:
        connection = session.connection()
        if not inspect(connection).get_table_names():
            _create(connection)
        elif current_revision(connection) != HEAD:
            upgrade(connection)


def current_revision(connection: Connection) -> str | None:
    """The file's revision; None for an empty file."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if revision is None else str(revision)


def _create(connection: Connection) -> None:
    """Give an empty file the newest schema at once: the daemon's first start need not import Alembic either."""
    SQLModel.metadata.create_all(connection)
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def upgrade(connection: Connection) -> None:
    """Run the missing revisions, from whichever there is. Raises DatabaseTooNew."""
    # Alembic costs 10 MB and is needed once in a while: imported only then.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, HEAD)
    except CommandError as error:  # the file names a revision that this program doesn't have
        raise DatabaseTooNew from error
