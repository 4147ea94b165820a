"""The one file: how it is opened, what a transaction is, and what is left of it when a process is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from shutil import rmtree
from sqlite3 import connect

import pytest
from sqlalchemy import text
from sqlalchemy.exc import StatementError

from pocketllm.daemon.scheduling.attempts import STALL_SECONDS
from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseUnusable
from pocketllm.storage.store import Store
from tests.support.stored import add_texts, new_texts

#: Adds texts one by one.
ADDS_TEXTS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from pocketllm.storage.database import Database
from pocketllm.storage.store import Store
from pocketllm.storage.repositories.texts import NewText
store = Store(Database(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    store.texts.add([NewText(text=f"child {number}", source="test")], now=datetime.now(UTC))
"""

#: Writes a text and waits in the middle of the transaction, with the row in the file's log.
STOPS_IN_THE_MIDDLE = """
import sys
from pathlib import Path
from sqlalchemy import text
from pocketllm.storage.database import Database
with Database(Path(sys.argv[1])).write() as session:
    session.connection().execute(text("PRAGMA cache_size = 1"))
    for number in range(200):
        values = {"id": f"half-{number}", "number": 9 + number, "words": "half " * 1000}
        session.connection().execute(text(
            "INSERT INTO text (id, number, source, text, words, held_out, created_at)"
            " VALUES (:id, :number, 'child', :words, 1000, 0, '2026-01-01 00:00:00.000000')"
        ), values)
    print("in the middle", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def child(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line; killed at the end if need be."""
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_every_connection_is_set_up(path: Path) -> None:
    # FULL: on disk when the commit returns; NORMAL.
    for durable, synchronous in ((True, 2), (False, 1)):
        pragmas = {"synchronous": synchronous, "journal_mode": "wal", "foreign_keys": 1, "secure_delete": 1}
        with closing(Database(path, durable=durable)) as database, database.read() as one, database.read() as two:
            for session in (one, two):
                found = {name: session.connection().execute(text(f"PRAGMA {name}")).scalar() for name in pragmas}
                assert found == pragmas


def test_the_daemon_and_the_worker_write_durably(path: Path) -> None:
    """A checkpoint on disk must never be ahead of the step log, nor a learned text without its record."""
    Store.open(path).close()
    openers: list[Callable[[Path], Store]] = [Store.open, lambda path: Store.open_for_worker(path, "job-0", 1)]
    for open_store in openers:
        store = open_store(path)
        with store._database.read() as session:
            assert session.connection().execute(text("PRAGMA synchronous")).scalar() == 2
        store.close()


def test_a_worker_waits_for_a_lock_longer_than_any_scan_holds_it(store: Store, path: Path) -> None:
    with closing(Store.open_for_worker(path, "job-0", 1)) as worker, worker._database.read() as session:
        waits = session.connection().execute(text("PRAGMA busy_timeout")).scalar_one() / 1000
    assert 30 < waits < STALL_SECONDS, "else it is taken for one that hangs"


def test_a_transaction_that_fails_leaves_nothing(store: Store, path: Path) -> None:
    [identity] = add_texts(store, "kept")
    with closing(Database(path)) as database:
        with pytest.raises(InterruptedError), database.write() as session:
            session.connection().execute(text("DELETE FROM text"))
            raise InterruptedError
        add_texts(store, "the lock is free again")
    assert store.texts.get(identity).text == "kept"


def test_a_reader_sees_the_same_to_its_end_while_others_write(store: Store, path: Path) -> None:
    add_texts(store, "before")
    with closing(Database(path)) as database, database.read() as session:
        count = text("SELECT count(*) FROM text")
        assert session.connection().execute(count).scalar() == 1
        add_texts(store, "meanwhile")
        assert session.connection().execute(count).scalar() == 1
    assert store.texts.counts().texts == 2


def test_a_time_without_a_zone_is_refused_and_nothing_is_stored(store: Store) -> None:
    with pytest.raises(StatementError, match="a time without a zone"):
        store.texts.add(new_texts("a"), now=datetime(2026, 1, 1))
    assert store.texts.counts().texts == 0


def test_a_time_in_another_zone_comes_back_as_the_same_moment_in_utc(store: Store) -> None:
    moment = datetime(2026, 1, 1, 1, 30, 0, 5, tzinfo=timezone(timedelta(hours=2)))
    [identity] = store.texts.add(new_texts("a"), now=moment).ids
    kept = store.texts.get(identity).created_at
    assert kept == moment
    assert kept.tzinfo is UTC


def test_two_processes_that_write_at_once_lose_nothing(store: Store, path: Path) -> None:
    ours: list[str] = []
    with child(ADDS_TEXTS, path) as process:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            ours.append(f"parent {len(ours)}")
            add_texts(store, ours[-1])
            # Without a breath the lock would hardly ever be seen free by the other.
            store.texts.page(after=None, limit=500)
        assert process.returncode == 0
    words = {row.text for row in store.texts.page(after=None, limit=10_000)}
    assert words == {*ours, *(f"child {number}" for number in range(20))}


def test_a_process_killed_in_a_transaction_leaves_the_file_as_before(store: Store, path: Path) -> None:
    add_texts(store, "before")
    log = Path(f"{path}-wal")
    size = log.stat().st_size
    with child(STOPS_IN_THE_MIDDLE, path) as process:
        assert log.stat().st_size > size, "the half transaction is not in the file yet: the test tests nothing"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    add_texts(store, "after")
    assert {row.text for row in store.texts.page(after=None, limit=500)} == {"before", "after"}
    with closing(connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_what_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    beginning = b"SQLite format 3\0"
    for number, content in enumerate((b"no database, " * 500, bytes(range(256)) * 64, beginning + b"\xff" * 9000)):
        path = tmp_path / f"{number}.db"
        path.write_bytes(content)
        with pytest.raises(DatabaseUnusable, match=rf"{path} cannot be used: .*[Mm]ove the file away"):
            Store.open(path)
        assert path.read_bytes() == content
    with pytest.raises(DatabaseUnusable, match=f"{tmp_path} cannot be used"):
        Store.open(tmp_path)  # a folder


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replaced(path: Path) -> None:
    moved(path)
    Store.open(path).close()


def folder_deleted(path: Path) -> None:
    rmtree(path.parent)


@pytest.mark.parametrize("happens", [Path.unlink, moved, replaced, folder_deleted])
def test_nothing_is_acknowledged_once_the_file_is_not_at_its_path(
    happens: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "100% ? #1"  # which a URI escapes
    folder.mkdir()
    path = folder / "pocketllm.db"
    with closing(Store.open(path)) as store:
        [identity] = add_texts(store, "before")
        happens(path)
        there = path.exists()
        for use in (lambda: add_texts(store, "after"), lambda: store.texts.get(identity)):
            with pytest.raises(DatabaseUnusable, match=r"moved, replaced or deleted .* Put the file back, or restart"):
                use()
        assert path.exists() is there


def test_no_connection_creates_the_file_again(store: Store, path: Path) -> None:
    with store._database.read() as session, store._database.engine.connect():  # one that is in use, and one to spare
        session.connection()
        path.unlink()
        with pytest.raises(DatabaseUnusable, match=f"{path} cannot be used"), ExitStack() as more:
            for _ in range(2):
                more.enter_context(store._database.engine.connect())
    assert not path.exists()


def test_a_file_that_was_put_back_is_used_again(store: Store, path: Path) -> None:
    [identity] = add_texts(store, "before")
    moved(path)
    with pytest.raises(DatabaseUnusable):
        store.texts.get(identity)
    path.with_name("elsewhere").rename(path)
    assert store.texts.get(identity).text == "before"
    add_texts(store, "after")


def test_a_closed_store_can_be_closed_again_and_opened_again(path: Path) -> None:
    store = Store.open(path)
    [identity] = add_texts(store, "kept")
    store.close()
    store.close()
    again = Store.open(path)
    assert again.texts.get(identity).text == "kept"
    again.close()
