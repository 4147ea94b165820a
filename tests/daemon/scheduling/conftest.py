"""A scheduler in its world, and a job that runs in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.storage.tables import JobState
from tests.support.daemon.scheduler_world import SchedulerWorld, scheduler_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SchedulerWorld]:
    with scheduler_world(tmp_path) as made:
        yield made


@pytest.fixture
def running(world: SchedulerWorld) -> str:
    """A job that a worker is at."""
    world.add(5)
    job_id = world.request()
    world.tick()
    assert world.job(job_id).state is JobState.RUNNING
    return job_id
