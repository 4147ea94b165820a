"""From any file to the newest schema, or a clear refusal."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlmodel import SQLModel

from pocketllm.storage import migrations
from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseTooNew, DatabaseUnusable
from pocketllm.storage.migrate import current_revision, migrate
from pocketllm.storage.migrations import HEAD
from pocketllm.storage.store import Store
from pocketllm.storage.texts import NewText
from tests.working import NOW


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pocketllm.db"


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


def test_an_empty_file_gets_the_newest_schema(database: Database) -> None:
    assert revision(database) is None
    migrate(database)
    assert revision(database) == HEAD


def test_a_second_time_changes_nothing(database: Database, path: Path) -> None:
    migrate(database)
    before = schema(path)
    migrate(database)
    assert schema(path) == before


def test_what_is_stored_stays(path: Path) -> None:
    store = Store.open(path)
    [identity] = store.texts.add([NewText(text="kept", source="test")], now=NOW).ids
    store.close()
    store = Store.open(path)
    assert store.texts.get(identity).text == "kept"
    store.close()


def test_the_migrated_schema_is_the_tables_own(database: Database) -> None:
    migrate(database)
    with database.read() as session:
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, SQLModel.metadata) == []


def test_head_is_the_last_of_the_revisions() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(str(migrations.__file__)).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_file_of_a_newer_program_is_refused_and_left_alone(path: Path) -> None:
    Store.open(path).close()
    with closing(connect(path)) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    before = schema(path)
    with pytest.raises(DatabaseTooNew, match="newer PocketLLM"):
        Store.open(path)
    assert schema(path) == before


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with closing(connect(path)) as raw, raw:
        raw.execute("CREATE TABLE job (something TEXT)")
    before = schema(path)
    with pytest.raises(DatabaseUnusable, match="already exists"):
        Store.open(path)
    assert schema(path) == before
