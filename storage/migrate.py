"""Migrates a database to the newest schema."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlmodel import SQLModel

from pocketllm.storage import tables as _tables  # noqa: F401 - which SQLModel.metadata then knows
from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseUnusable
from pocketllm.storage.migrations import HEAD
from pocketllm.storage.repositories.passages import create_index

SCRIPTS = Path(__file__).parent / "migrations"


def migrate(database: Database) -> None:
    """Run the missing revisions in one transaction. Raises DatabaseUnusable."""
    with database.write() as session:
        connection = session.connection()
        if not inspect(connection).get_table_names():
            _create(connection)
        elif (revision := current_revision(connection)) is None:
            raise DatabaseUnusable(f"{database.path} is not a PocketLLM database. Move it away.")
        elif revision != HEAD:
            upgrade(connection)


def current_revision(connection: Connection) -> str | None:
    """The database's revision; None if it is empty, or another program's."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if revision is None else str(revision)


def _create(connection: Connection) -> None:
    """Create the newest schema in an empty database, without Alembic."""
    SQLModel.metadata.create_all(connection)
    create_index(connection)
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def upgrade(connection: Connection, *, to: str = HEAD, scripts: Path = SCRIPTS) -> None:
    """Run the missing revisions. Raises DatabaseUnusable."""
    # Imported only here: Alembic takes 10 MB.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, to)
    except CommandError as error:  # an unknown revision
        raise DatabaseUnusable(
            "The database belongs to a newer PocketLLM, or to one before the first release. Install that, or move it "
            "away."
        ) from error
