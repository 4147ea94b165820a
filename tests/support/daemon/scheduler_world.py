"""A scheduler and all that it deals with, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.planning import JobRequest
from pocketllm.daemon.scheduling.queueing import Planner
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.settings import Settings, load_settings
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter, Job, Outcome
from tests.support.daemon.fixed_plan import fixed_plan
from tests.support.daemon.in_process_app import Clock, FakeRunner, FixedSensor
from tests.support.daemon.workers import new_step, write_adapter_files


@contextmanager
def scheduler_world(root: Path, planner: Planner = fixed_plan, **training: Any) -> Iterator["SchedulerWorld"]:
    """One on a data folder of its own, where 20 new words ask for a job of 30 steps."""
    folder = DataFolder(root / "data")
    folder.make()
    store = Store.open(folder.database)
    chosen = {"new_words": 20, "steps": 30} | training
    settings = load_settings({"data_dir": folder.root, "model": "tiny", "training": chosen})
    yield SchedulerWorld(store=store, folder=folder, settings=settings, runner=FakeRunner(), planner=planner)
    store.close()


@dataclass(kw_only=True)
class SchedulerWorld:
    """A scheduler and all that it deals with. A tick comes every two seconds."""

    store: Store
    folder: DataFolder
    settings: Settings
    runner: FakeRunner
    planner: Planner
    clock: Clock = field(default_factory=Clock)
    power: FixedSensor = field(default_factory=lambda: FixedSensor("power", True))
    battery: FixedSensor = field(default_factory=lambda: FixedSensor("battery", 80.0, "%"))
    memory: FixedSensor = field(default_factory=lambda: FixedSensor("memory", 4e9, "bytes"))
    model_problem: str | None = None
    generator_bytes: int = 0

    def __post_init__(self) -> None:
        self.scheduler = self.scheduler_with(self.runner)

    def scheduler_with(self, runner: FakeRunner) -> Scheduler:
        """Another daemon's scheduler on the same data."""
        parts = (
            self.store,
            self.folder,
            SensorSet(sensors=[self.power, self.battery, self.memory]),
            runner,
            self.settings,
        )
        others: Any = {"planner": self.planner, "wake_lock": WakeLock(), "uptime": lambda: self.clock.now.timestamp()}
        others["generator_bytes"] = lambda: self.generator_bytes
        return Scheduler(*parts, model_problem=lambda: self.model_problem, **others)

    def tick(self, seconds: float = 2) -> datetime:
        self.scheduler.tick(self.clock.advance(seconds))
        return self.clock.now

    def plug_in(self, seconds: float = 2) -> datetime:
        """Put the charger in, and tick after so many seconds; the time."""
        self.power.value = True
        return self.tick(seconds)

    def unplug(self, seconds: float = 2) -> datetime:
        """Take the charger out, and tick after so many seconds; the time."""
        self.power.value = False
        return self.tick(seconds)

    def restart(self) -> None:
        """Let the daemon die, and another one go on with its data."""
        self.runner = FakeRunner()
        self.scheduler = self.scheduler_with(self.runner)
        self.scheduler.recover(self.clock.now)

    def add(self, words: int, about: str = "word") -> None:
        self.store.texts.add([NewText(text=f"{about} " * words, source="test")], now=self.clock.now)

    def request(self, *, immediate: bool = False, seed: int | None = 1) -> str:
        """Ask for a job; without a seed, for the open one if there is one."""
        return self.scheduler.queue.request(JobRequest(), seed=seed, immediate=immediate, now=self.clock.now).id

    def request_by_words(self, words: int = 20) -> str:
        """Add so many new words that a tick queues a job, which a worker starts if the gate is open; its id."""
        self.add(words)
        self.tick()
        return self.only_job().id

    def job(self, job_id: str) -> Job:
        return self.store.jobs.get(job_id)

    def only_job(self) -> Job:
        [job] = self.store.jobs.page(after=None, limit=9)
        return job

    def step(self, job_id: str) -> None:
        """Let the worker make a step."""
        self.store.step_log.append(new_step(job_id, self.store.step_log.last_step(job_id) + 1))

    def worker_ends(self, code: int = 1, last_words: str = "boom") -> datetime:
        """Let the worker end by itself, and tick; the time."""
        self.runner.ends(code, last_words)
        return self.tick()

    def finish(self, job_id: str, outcome: Outcome = Outcome.LEARNED, **more: Any) -> None:
        """Let the worker end its job well, and tick."""
        self.succeed(job_id, outcome, **more)
        self.tick()

    def succeed(self, job_id: str, outcome: Outcome = Outcome.LEARNED, **more: Any) -> None:
        """Let the worker end its job well."""
        now, job = self.clock.now, self.job(job_id)
        made: dict[str, Any] = {"model": job.model, "parent": job.parent, "outcome": outcome, "created_at": now}
        row = Adapter(id=f"of-{job_id}", job_id=job_id, **made)
        write_adapter_files(self.folder.adapter(row.id))
        self.store.jobs.succeed(job_id, adapter=row, publish=outcome is Outcome.LEARNED, now=now, **more)
        self.runner.ends(0)
