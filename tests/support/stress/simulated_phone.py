"""A simulated phone's daemon: the real parsers, gate, scheduler and database on the fake clock of a PhoneWorld."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pocketllm.daemon.conditions.android_battery import battery_sensors, parse
from pocketllm.daemon.conditions.android_screen import ScreenIdleness, screen_property
from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.poller import Background, Pace, Polled
from pocketllm.daemon.conditions.readings import Reading, Sensor, Value
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.errors import ChildFailed
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.settings import Settings
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, Requester
from tests.support.daemon.in_process_app import FakeRunner
from tests.support.stress.phone_world import PhoneWorld

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Known:
    """A sensor of bytes that always knows."""

    name: str
    ask: Callable[[], float]

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        return Reading(name=self.name, value=self.ask(), unit="bytes", source="the world", at=now)


class SimulatedPhone:
    """The world, the daemon's parts in it, and what its life comes to, in seconds."""

    def __init__(self, world: PhoneWorld, folder: Path) -> None:
        self.world, self.settings, self.folder = world, Settings(data_dir=folder), DataFolder(folder)
        self.store, self.worker, self.pace = Store.open(folder / "phone.db"), FakeRunner(), Pace()
        self.polls, self.polled = 0, list[Background[Any]]()
        self.screen_off_since = 0.0
        self.violated_since = math.inf
        self.violation = self.eligible = self.used = self.learned = 0.0
        self.scheduler = self.daemon()

    @property
    def now(self) -> datetime:
        """By its clock."""
        return _BEGAN + timedelta(seconds=self.world.at)

    @property
    def running(self) -> bool:
        """Whether a job runs."""
        return self.worker.pid is not None

    @property
    def idle_seconds(self) -> float:
        """In truth."""
        return 0.0 if self.world.holds("screen_on") else self.world.at - self.screen_off_since

    @property
    def close_to_a_threshold(self) -> bool:
        """Whether one degree or percent more would pause the job, so that no tick may be left out."""
        gate, world = self.settings.gate, self.world
        hot, empty = gate.temperature_stop_celsius - 1, gate.battery_stop_percent + 1
        return self.running and (world.celsius > hot or world.level < empty)

    def count(self, seconds: float, *, has_job: bool) -> bool:
        """Count seconds in which nothing changes; whether a job might truly have been started."""
        eligible = has_job and self.world.eligible(self.settings.gate, self.idle_seconds)
        self.learned += seconds * self.running
        self.eligible += seconds * eligible
        self.used += seconds * (eligible and self.running)
        return eligible

    def judge(self, *, was_running: bool, notice_seconds: float) -> None:
        """Count the time in which a job went on without a condition, for longer than it takes to notice."""
        if not was_running or not self.world.violated(self.settings.gate, self.idle_seconds):
            self.violated_since = math.inf
            return
        self.violated_since = min(self.violated_since, self.world.at)
        late = self.world.at - self.violated_since - notice_seconds
        if late > 1e-6:
            self.violation += late
            self.violated_since += late

    def queue_job(self) -> str:
        """Queue a job that has more steps than it will ever make; its id."""
        model, now = self.settings.model, self.now
        job = Job(requested_by=Requester.OWNER, model=model, seed=0, total_steps=10**6, created_at=now)
        return self.store.jobs.add(job).id

    def source(self, ask: Callable[[], Any], *, idle_seconds: float, training_seconds: float) -> Background[Any]:
        """A source that is polled as the daemon's own, in a thread."""

        def counted() -> Any:
            self.polls += 1
            return ask()

        made = Background(counted, self.pace, idle_seconds=idle_seconds, training_seconds=training_seconds)
        self.polled.append(made)
        return made

    def daemon(self) -> Scheduler:
        """The daemon's scheduler."""
        world, self.wake_lock = self.world, WakeLock()

        def battery() -> dict[str, Value]:
            if (said := world.battery_says()) is None:
                raise ChildFailed("termux-battery-status did not answer within 10 s")
            return parse(said)

        answers = self.source(lambda: screen_property(world.screen_says()), idle_seconds=15, training_seconds=3)
        screen = Polled("screen", None, "getprop", answers, bool)
        sensors: list[Sensor] = [
            *battery_sensors(self.source(battery, idle_seconds=60, training_seconds=5)),
            screen,
            ScreenIdleness(screen, self.folder.idle_stamp, lambda: world.at),
            Known("memory", lambda: world.memory_bytes),
            Known("disk", lambda: world.disk_bytes),
        ]
        return Scheduler(
            self.store,
            self.folder,
            SensorSet(sensors=sensors, pace=self.pace),
            self.worker,
            self.settings,
            model_problem=lambda: None,
            planner=no_plan,
            wake_lock=self.wake_lock,
            local=lambda now: now,
            uptime=lambda: world.at,
        )


def no_plan(*_: object) -> Any:
    """A planner that nobody asks."""
    raise AssertionError("no job is asked for here")
