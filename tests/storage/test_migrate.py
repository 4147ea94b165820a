"""From any file to the newest schema, or a clear refusal."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import copytree
from sqlite3 import connect

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlmodel import SQLModel

from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseUnusable
from pocketllm.storage.migrate import SCRIPTS, current_revision, migrate, upgrade
from pocketllm.storage.migrations import HEAD
from pocketllm.storage.store import Store
from tests.support.stored import add_texts


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path)
    yield database
    database.close()


def revision(database: Database) -> str | None:
    with database.read() as session:
        return current_revision(session.connection())


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(connect(path)) as raw:
        return raw.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.add_column("text", sa.Column("language", sa.String(), nullable=True))
    op.drop_column("text", "messages")
"""


def upgrade_by(database: Database, folder: Path, next_revision: str) -> None:
    """Upgrade by one more revision than there is."""
    scripts = copytree(SCRIPTS, folder / "migrations")
    (scripts / "versions" / "next.py").write_text(next_revision)
    with database.write() as session:
        upgrade(session.connection(), to="next", scripts=scripts)


def test_what_an_older_schema_held_stays(database: Database, path: Path, tmp_path: Path) -> None:
    with closing(Store.open(path)) as store:
        [identity] = add_texts(store, "kept")
    upgrade_by(database, tmp_path, NEXT)
    assert revision(database) == "next"
    with closing(connect(path)) as raw:
        assert raw.execute("SELECT id, text, language FROM text").fetchall() == [(identity, "kept", None)]
        assert raw.execute("SELECT text_id FROM text_owner").fetchall() == [(identity,)]
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []


def test_a_migration_that_fails_leaves_the_file_as_it_was(database: Database, path: Path, tmp_path: Path) -> None:
    migrate(database)
    before = schema(path)
    with pytest.raises(DatabaseUnusable, match="text_owner"):
        upgrade_by(database, tmp_path, f"{NEXT}    op.execute('CREATE TABLE text_owner (something TEXT)')\n")
    assert revision(database) == HEAD
    assert schema(path) == before


def test_the_schema_of_an_empty_file_is_the_tables_own_also_after_a_second_time(database: Database, path: Path) -> None:
    assert revision(database) is None
    migrate(database)
    before = schema(path)
    migrate(database)
    assert schema(path) == before
    assert revision(database) == HEAD
    with database.read() as session:
        # The full-text index and its own tables are no model's; so no table of the metadata.
        options = {"include_name": lambda name, *_: not str(name).startswith("passage"), "compare_type": False}
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, SQLModel.metadata) == []


def test_head_is_the_last_of_the_revisions() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_file_of_another_version_is_refused_and_left_alone(path: Path) -> None:
    Store.open(path).close()
    for other in ("9999", "0017"):  # a newer one, and one from before the first release
        with closing(connect(path)) as raw, raw:
            raw.execute("UPDATE alembic_version SET version_num = ?", (other,))
        before = schema(path)
        with pytest.raises(DatabaseUnusable, match="newer PocketLLM"):
            Store.open(path)
        with pytest.raises(DatabaseUnusable, match="written by another version of PocketLLM"):
            Store.open_unchecked(path)
        assert schema(path) == before


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with closing(connect(path)) as raw, raw:
        raw.execute("CREATE TABLE job (something TEXT)")
    before = schema(path)
    with pytest.raises(DatabaseUnusable, match="not a PocketLLM database"):
        Store.open(path)
    assert schema(path) == before
