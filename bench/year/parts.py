"""What stands for the parts of a phone that a simulation does not have: a worker, and sensors that ask its world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketllm.daemon.conditions.android_battery import Battery, parse
from pocketllm.daemon.conditions.poller import ProbeFailed
from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.scheduling.worker_process import Exit, WorkerProcess
from pocketllm.storage.tables import Requester

if TYPE_CHECKING:
    from datetime import datetime

    from bench.year.world import World
    from pocketllm.daemon.settings import Settings
    from pocketllm.storage.store import Store
    from pocketllm.storage.tables import Job


@dataclass
class Worker(WorkerProcess):
    """A worker without a process."""

    job_id: str | None = None

    @property
    def pid(self) -> int | None:
        """See WorkerProcess."""
        return 1 if self.job_id else None

    @property
    def cpu_seconds(self) -> float | None:
        """See WorkerProcess."""
        return None

    def start(self, job_id: str, start: int) -> None:
        """See WorkerProcess."""
        self.job_id = job_id

    def reap(self) -> Exit | None:
        """See WorkerProcess: this one never ends by itself."""
        return None

    def kill(self) -> Exit | None:
        """See WorkerProcess."""
        job_id, self.job_id = self.job_id, None
        return None if job_id is None else Exit(job_id=job_id, code=-9, last_words="", cpu_seconds=0.0)


@dataclass(frozen=True)
class Number:
    """A sensor that always knows."""

    name: str
    unit: str
    ask: Callable[[], float]

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        return Reading(name=self.name, value=self.ask(), unit=self.unit, source="the world", at=now)


def queued_job(store: Store, settings: Settings, now: datetime) -> Job:
    """Queue a job that has more steps than it will ever make."""
    job = Job(requested_by=Requester.OWNER, model=settings.model, seed=0, total_steps=10**6, created_at=now)
    return store.jobs.add(job)


def battery(world: World) -> Battery:
    """What termux-battery-status says, parsed. Raises ProbeFailed."""
    said = world.battery_says()
    if said is None:
        raise ProbeFailed("termux-battery-status did not answer within 10 s")
    return parse(said)


def no_plan(*_: object) -> Any:
    """A planner that nobody asks."""
    raise AssertionError("no job is asked for here")
