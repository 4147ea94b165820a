"""From any file to the newest schema, or a clear refusal."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlmodel import SQLModel

from pocketllm.storage import migrations
from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseTooNew, DatabaseUnusable
from pocketllm.storage.migrate import current_revision, migrate, upgrade
from pocketllm.storage.migrations import HEAD
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, PERSON, JobState, Kind
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


#: A folder as the first schema had it: a job that has ended, one on its way, and all that belongs to them.
AT_0001 = """
INSERT INTO text VALUES ('text-1', 'notes', 'Wind west.', 2, 0, 'job-1', '2026-01-01 00:00:00.000000');
INSERT INTO job (id, state, reasons, requested_by, immediate, model, method, seed, settings, total_steps, adapter,
    outcome, attempts, created_at) VALUES
    ('job-1', 'succeeded', '[]', 'owner', 1, 'tiny', 'mezo', 7, '{"rank": 2}', 2, 'adapter-1', 'learned', 0,
    '2026-01-01 00:00:00.000000'),
    ('job-2', 'paused', '["battery"]', 'threshold', 0, 'tiny', 'mezo', 8, '{}', 9, NULL, NULL, 1,
    '2026-01-02 00:00:00.000000');
INSERT INTO job_text VALUES ('job-1', 'text-1'), ('job-2', 'text-1');
INSERT INTO evaluation VALUES ('job-1', 0, 3.5, '[4.0, 3.0]', '2026-01-01 00:00:00.000000');
INSERT INTO event VALUES (5, 'job-1', '2026-01-01 00:00:00.000000', 'queued', 'queued by owner');
INSERT INTO adapter VALUES
    ('adapter-1', 'job-1', 'tiny', NULL, 1, 'learned', 3.5, 3.4, '2026-01-01 00:00:00.000000');
"""
#: More than one part of the copy; numbers that need all of a float's digits.
OLD_STEPS = [(number, 0.1 / number, 3 + 1 / number, 1e-3 / number) for number in range(1, 2502)]


def at_revision(path: Path, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(str(migrations.__file__)).parent))
    with opened(path) as database, database.write() as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, revision)


def at_0001(path: Path) -> None:
    at_revision(path, "0001")
    with closing(connect(path)) as raw, raw:
        raw.executescript(AT_0001)
        insert = "INSERT INTO step VALUES ('job-2', ?, 8, ?, ?, ?, 100, 2.5)"
        raw.executemany(insert, OLD_STEPS)


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    database = Database(path)
    yield database
    database.close()


def test_what_the_first_schema_held_stays(path: Path) -> None:
    at_0001(path)
    store = Store.open(path)
    text = store.texts.get("text-1")
    assert (text.text, text.completion, text.label, text.kind, text.learned_in) == (
        "Wind west.",
        None,
        None,
        Kind.PLAIN,
        "job-1",
    )
    ended, open_job = store.jobs.get("job-1"), store.jobs.get("job-2")
    assert (ended.state, ended.settings, ended.adapter) == (JobState.SUCCEEDED, {"rank": 2}, "adapter-1")
    assert (open_job.state, open_job.reasons, open_job.attempts) == (JobState.PAUSED, ["battery"], 1)
    for job in (ended, open_job):
        assert (job.mode, job.predicted_bytes, job.plan, job.early_stopping) == ("lora", None, None, None)
    assert [(text.id, text.learned_in) for text in store.texts.of_job("job-2")] == [("text-1", "job-1")]
    assert [(text.id, text.learned_in) for text in store.texts.of_job("job-1")] == [("text-1", None)]
    assert [event.message for event in store.jobs.events("job-1")] == ["queued by owner"]
    evaluation = store.step_log.evaluation("job-1", 0)
    assert evaluation is not None
    losses: Any = evaluation.block_losses  # by place: until 0.2 blocks had no keys
    assert losses == [4.0, 3.0]
    serving = store.adapters.serving("tiny")
    assert serving is not None and (serving.id, serving.mode, serving.held_out_loss_now) == ("adapter-1", "lora", 3.4)
    rows = store.step_log.steps("job-2")
    assert store.reports.find("job-1") is None
    assert [(row.step, row.scalars, row.loss, row.learning_rate) for row in rows] == [
        (number, [scalar], loss, rate) for number, scalar, loss, rate in OLD_STEPS
    ]
    assert {(row.seed, row.tokens, row.seconds) for row in rows} == {(8, 100, 2.5)}
    store.close()
    with closing(connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []


#: Jobs whose states stood in their events' texts, and tables that had other names.
AT_0011 = """
INSERT INTO job (id, state, reasons, requested_by, immediate, model, method, seed, settings, total_steps, attempts,
    created_at, held, watch, plan)
    SELECT column1, 'succeeded', '[]', 'owner', 1, 'tiny', 'mezo', 7, '{}', 2, 0, '2026-01-01 00:00:00.000000',
    column2, '{"best_step": 2}', '{"batch": 8, "rows_at_once": 4, "lanes": 2}'
    FROM (VALUES ('first', 0), ('second', 1), ('third', 0), ('before', 0));
INSERT INTO event (job_id, at, kind, message) VALUES
    ('first', '2026-01-01 00:00:00.000000', 'compared with', 'the base model'),
    ('second', '2026-01-01 00:00:00.000000', 'compared with', 'adapter-1'),
    ('second', '2026-01-01 00:00:00.000000', 'withdrawn', 'taken back'),
    ('third', '2026-01-01 00:00:00.000000', 'withdrawn', 'taken back'),
    ('third', '2026-01-01 00:00:00.000000', 'brought back', 'served again');
INSERT INTO owners_word VALUES ('snoozed until', '"2026-01-02T03:04:05+00:00"');
INSERT INTO opening (began_at) VALUES ('2026-01-01 00:00:00.000000');
INSERT INTO sample (at, battery) VALUES ('2026-01-01 00:00:00.000000', 80);
INSERT INTO compact_journal VALUES ('first', 2, x'00');
INSERT INTO report (job_id, numbers) VALUES
    ('first', '{"judgement": {"outcome": "learned"}, "leak": null}'),
    ('second', '{"judgement": {"outcome": "worse"}, "leak": {"places": 8, "base": 0.0, "personal": 0.5}}');
"""


def test_states_out_of_events_become_columns(path: Path) -> None:
    at_revision(path, "0011")
    with closing(connect(path)) as raw, raw:
        raw.executescript(AT_0011)
    store = Store.open(path)
    jobs = [store.jobs.get(identity) for identity in ("first", "second", "third", "before")]
    assert [job.compared_with for job in jobs] == [BASE, "adapter-1", None, None]
    assert [job.withdrawn for job in jobs] == [False, True, False, False]
    assert [job.paused_by_owner for job in jobs] == [False, True, False, False]
    assert (jobs[0].early_stopping, jobs[0].plan) == ({"best_step": 2}, {"batch": 8, "micro_batch": 4, "replicas": 2})
    first, second = store.reports.of(jobs[0]), store.reports.of(jobs[1])
    assert first.numbers == {"verdict": {"outcome": "learned"}, "verbatim_recall": None}
    assert second.numbers["verbatim_recall"] == {"places": 8, "base": 0.0, "personal": 0.5}
    assert store.preferences.snoozed_until(NOW) == NOW
    assert [window.ended_at for window in store.runs.idle_windows(NOW)] == [None]
    assert [sample.battery for sample in store.sensor_history.since(NOW - timedelta(days=2))] == [80]
    assert store.step_log.last_step("first") == 2
    store.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    at_0001(path)
    with closing(connect(path)) as raw, raw:
        raw.execute("CREATE TABLE step_0001 (something TEXT)")  # in the way, at the end of the revision
    before = schema(path)
    with pytest.raises(DatabaseUnusable, match="step_0001"):
        Store.open(path)
    assert schema(path) == before
    with opened(path) as database:
        assert revision(database) == "0001"
    with closing(connect(path)) as raw:
        assert raw.execute("SELECT count(*) FROM step").fetchall() == [(len(OLD_STEPS),)]


def step_by_step(database: Database) -> None:
    """All revisions, which an empty file otherwise does without."""
    with database.write() as session:
        upgrade(session.connection())


@pytest.mark.parametrize("way", [migrate, step_by_step])
def test_the_migrated_schema_is_the_tables_own(database: Database, way: Callable[[Database], None]) -> None:
    way(database)
    assert revision(database) == HEAD
    with database.read() as session:
        # The full-text index and its own tables are no model's; so no table of the metadata.
        not_of_search = {"include_name": lambda name, *_: not str(name).startswith("passage")}
        context = MigrationContext.configure(session.connection(), opts=not_of_search)
        assert compare_metadata(context, SQLModel.metadata) == []


def columns(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Of each table: names, types but for their length, which is nothing to SQLite, NOT NULL, defaults and keys."""
    with closing(connect(path)) as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: raw.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
    return {name: sorted((row[1], row[2].partition("(")[0], *row[3:]) for row in found) for name, found in rows.items()}


def test_an_empty_file_gets_what_the_revisions_come_to(tmp_path: Path) -> None:
    """Column by column, with the defaults that the database itself fills in."""
    found = []
    for way in (migrate, step_by_step):
        made = Database(tmp_path / way.__name__)
        way(made)
        made.close()
        found.append(columns(made.path))
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
    with pytest.raises(DatabaseUnusable, match="already exists"):
        Store.open(path)
    assert schema(path) == before


def test_a_text_stays_its_apps_or_the_persons(path: Path) -> None:
    at_revision(path, "0013")
    with closing(connect(path)) as raw, raw:
        row = "INSERT INTO text (id, source, text, words, held_out, app, created_at) VALUES"
        for identity, app in (("text-1111", "NULL"), ("text-2222", "'notes'")):
            raw.execute(f"{row} ('{identity}', 'notes', 'Wind west.', 2, 0, {app}, '2026-01-01 00:00:00.000000')")
        raw.execute(
            "INSERT INTO uploaded_file VALUES ('file-1', 'a', 'evals', 1, 'a', '2026-01-01 00:00:00.000000', NULL)"
        )
    store = Store.open(path)
    assert store.files.get("file-1").owner == PERSON
    assert store.deletions.app("notes", now=NOW).texts == 1
    assert [text.id for text in store.texts.page(after=None, limit=5)] == ["text-1111"]
    assert store.deletions.app(PERSON, now=NOW).texts == 1
    store.close()


def test_older_texts_are_found(path: Path) -> None:
    at_0001(path)
    with closing(connect(path)) as raw, raw:
        raw.execute(
            "INSERT INTO text VALUES ('text-0123456789abcdef01234567', 'notes', 'Anna has the watch.', 4, 0, NULL, "
            "'2026-01-01 00:00:00.000000')"
        )
    store = Store.open(path)
    assert [found.words for found in store.passages.search("watch", limit=2)] == ["Anna has the watch."]
    store.close()
