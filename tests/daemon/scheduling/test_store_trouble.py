"""What runs while the database cannot be used."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from pocketllm.storage.database import Database
from pocketllm.storage.store import Store
from tests.support.daemon.scheduler_world import SchedulerWorld


@pytest.fixture
def impatient(world: SchedulerWorld) -> Iterator[SchedulerWorld]:
    """A world that waits for no lock, where a job runs."""
    with closing(Store(Database(world.folder.database, busy_seconds=0))) as store:
        made = replace(world, store=store)
        made.add(5)
        made.request()
        made.tick()
        assert made.runner.job_id
        yield made


@contextmanager
def locked(world: SchedulerWorld) -> Iterator[None]:
    with closing(sqlite3.connect(world.folder.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_locked_database_is_no_reason_to_kill_a_worker(impatient: SchedulerWorld) -> None:
    world = impatient
    with locked(world):
        world.tick(61)  # when the run is to be noted again
        assert "Another program has locked" in world.scheduler.verdict.reasons[0]
    world.tick()
    assert world.scheduler.verdict.allowed and world.runner.killed == []


def test_a_deleted_database_ends_the_worker_and_is_said_once(
    world: SchedulerWorld, running: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.folder.database.unlink()
    with caplog.at_level(logging.ERROR):
        world.tick()
        world.tick()
    assert world.runner.killed == [running]
    assert ["moved, replaced or deleted" in message for message in caplog.messages] == [True]
    assert "moved, replaced or deleted" in world.scheduler.verdict.reasons[0]
    assert not world.folder.database.exists()
