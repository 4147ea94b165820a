"""Bring a database file to the newest schema."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseTooNew
from pocketllm.storage.migrations import HEAD


def migrate(database: Database) -> None:
    """Run the missing revisions in one transaction. Raises DatabaseTooNew when the file is ahead of the program."""
    with database.write() as session:
        connection = session.connection()
        if current_revision(connection) != HEAD:
            _upgrade(connection)


def current_revision(connection: Connection) -> str | None:
    """The file's revision; None for an empty file."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if revision is None else str(revision)


def _upgrade(connection: Connection) -> None:
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
