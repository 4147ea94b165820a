"""From any file to the newest schema, or a clear refusal."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from sqlite3 import connect
from typing import Any

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
from pocketllm.storage.repositories import passages
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import PERSON, JobState
from tests.support.workers import NOW


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


#: A job that has ended, one on its way, and texts of the person's and of an app's, one of them held out.
ROWS = """
INSERT INTO text (id, source, text, words, held_out, app, learned_in, created_at) VALUES
    ('text-1111', 'notes', 'Wind west.', 2, 0, NULL, 'job-1', '2026-01-01 00:00:00.000000'),
    ('text-2222', 'notes', 'Glass rising.', 2, 1, 'notes', NULL, '2026-01-01 00:00:00.000000');
INSERT INTO job (id, state, reasons, requested_by, immediate, model, method, seed, settings, total_steps, attempts,
    created_at) VALUES
    ('job-1', 'succeeded', '[]', 'owner', 1, 'tiny', 'exact', 7, '{"rank": 2}', 2, 0, '2026-01-01 00:00:00.000000'),
    ('job-2', 'paused', '["battery"]', 'threshold', 0, 'tiny', 'exact', 8, '{}', 9, 1, '2026-01-02 00:00:00.000000');
INSERT INTO job_text VALUES ('job-1', 'text-1111'), ('job-2', 'text-1111'), ('job-2', 'text-2222');
INSERT INTO uploaded_file VALUES ('file-1', 'a', 'evals', 1, 'a', '2026-01-01 00:00:00.000000', NULL);
"""


def at_0015(path: Path) -> None:
    with closing(connect(path)) as raw, raw:
        raw.executescript(Path(__file__).with_name("at_0015.sql").read_text() + ROWS)
    with opened(path) as database, database.write() as session:
        texts = [("text-1111", "Wind west.", None), ("text-2222", "Glass rising.", None)]
        passages.index(session.connection(), texts)


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    database = Database(path)
    yield database
    database.close()


def test_what_an_older_schema_held_stays(path: Path) -> None:
    at_0015(path)
    store = Store.open(path)
    ended, paused = store.jobs.get("job-1"), store.jobs.get("job-2")
    assert (ended.state, ended.settings, paused.reasons) == (JobState.SUCCEEDED, {"rank": 2}, ["battery"])
    roles = {job: [(t.id, t.learned_in, t.held_out) for t in store.texts.of_job(job)] for job in ("job-1", "job-2")}
    assert roles == {
        "job-1": [("text-1111", None, False)],
        "job-2": [("text-1111", "job-1", False), ("text-2222", None, True)],
    }
    assert store.files.get("file-1").owner == PERSON
    assert store.deletions.app("notes", now=NOW).texts == 1
    assert [text.id for text in store.texts.page(after=None, limit=5)] == ["text-1111"]
    assert store.deletions.app(PERSON, now=NOW).texts == 1
    store.close()
    with closing(connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    at_0015(path)
    with closing(connect(path)) as raw, raw:
        raw.execute("CREATE TABLE text_owner (something TEXT)")  # in the way
    before = schema(path)
    with pytest.raises(DatabaseUnusable, match="text_owner"):
        Store.open(path)
    assert schema(path) == before
    with opened(path) as database:
        assert revision(database) == "0015"


@pytest.mark.parametrize("older", [False, True], ids=["new", "migrated"])
def test_the_schema_is_the_tables_own(path: Path, older: bool) -> None:
    if older:
        at_0015(path)
    with opened(path) as database:
        migrate(database)
        assert revision(database) == HEAD
        with database.read() as session:
            # The full-text index and its own tables are no model's; so no table of the metadata.
            options = {"include_name": lambda name, *_: not str(name).startswith("passage"), "compare_type": False}
            context = MigrationContext.configure(session.connection(), opts=options)
            assert compare_metadata(context, SQLModel.metadata) == []


def columns(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Of each table: names, types but for their length, which is nothing to SQLite, NOT NULL, defaults and keys."""
    with closing(connect(path)) as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: raw.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
    return {name: sorted((row[1], row[2].partition("(")[0], *row[3:]) for row in found) for name, found in rows.items()}


def test_an_empty_file_gets_what_the_revisions_come_to(tmp_path: Path) -> None:
    """Column by column, with the defaults that the database itself fills in."""
    at_0015(tmp_path / "migrated")
    found = []
    for name in ("new", "migrated"):
        with opened(tmp_path / name) as database:
            migrate(database)
        found.append(columns(tmp_path / name))
    assert found[0] == found[1]


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
    with pytest.raises(DatabaseUnusable, match="not a PocketLLM database"):
        Store.open(path)
    assert schema(path) == before
