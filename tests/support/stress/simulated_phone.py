"""A phone that sleeps, with the daemon on it: real parsers, pollers, gate, scheduler and database on a fake clock."""

import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any, Self

from pocketllm.daemon.conditions.android_battery import battery_sensors, parse
from pocketllm.daemon.conditions.android_screen import STAMP_IDLE_SECONDS, ScreenIdleness, screen_property
from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.fresh_look import FreshLook
from pocketllm.daemon.conditions.poller import Background, Pace, Polled
from pocketllm.daemon.conditions.readings import Sensor, Value
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.errors import ChildFailed
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.settings import Settings
from pocketllm.server import seconds_to_next_tick
from pocketllm.storage.store import Store
from tests.support.daemon.in_process_app import FakeRunner, FixedSensor
from tests.support.daemon.workers import new_job
from tests.support.stress.phone_world import DAY, HOUR, MINUTE, PhoneWorld

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
#: How long the phone stays awake: after the screen goes off or a plug changes, and for another program.
AFTER_USE, AFTER_PLUG, FOR_OTHERS = 5.0, 10.0, (3.0, 12.0)
#: Between two times that other programs wake it: unplugged Android puts them off.
OTHERS_PLUGGED, OTHERS_UNPLUGGED = 6 * MINUTE, 20 * MINUTE
#: Android's idle hook: its period, and how much later than that it may run.
HOOK_PERIOD, HOOK_SLOP = 15 * MINUTE, 5 * MINUTE
#: While a job runs and nothing changes, one tick in so many seconds is made.
STRIDE, AFTER_A_CHANGE = 30.0, 8
#: Each evening at this hour a job is queued, which takes as many hours of training.
QUEUED_HOUR, JOB_HOURS = 20, 5.0
#: What a change may take to be seen: the battery is polled every 5 s while a job runs, answers, and a tick reads it.
NOTICE_SECONDS = 10.0


class SimulatedPhone:
    """The world, the daemon's parts in it, and what its life comes to, in seconds.

    While the phone sleeps, the daemon's timer stands still.
    """

    def __init__(self, world: PhoneWorld, folder: Path) -> None:
        self.world, self.settings, self.folder = world, Settings(data_dir=folder), DataFolder(folder)
        self.folder.make()
        self.store, self.worker, self.pace = Store.open(self.folder.database), FakeRunner(), Pace()
        self.polls, self.polled = 0, list[Background[Any]]()
        self.scheduler = self._daemon()
        self.fresh_look = FreshLook(self.wake_lock, self.pace, lambda: world.at)
        self.violation = self.eligible = self.used = 0.0
        self.violated_since = inf
        self.idle = 0.0  # without a job that waits or runs
        self.wakeups = 0  # of the daemon in that time: ticks, and polls of its sensors
        self.flaps, self.paused_at = 0, -inf  # starts within the minimum pause, and when a job paused
        self.first_starts: list[float] = []  # of each plug: awake and eligible until the first start
        self.random = random.Random(world.seed)
        self.screen_off_since = 0.0
        self.awake_until = 60.0  # at first it boots
        self.timer = 0.0  # awake seconds until the next tick
        self.watchful = 0  # ticks of which none is left out
        self.others_at, self.hook_at = OTHERS_UNPLUGGED, inf
        self.plugged = False
        self.first_start: float | None = None  # seconds so far; None: unplugged, or it has begun
        self.job: str | None = None
        self.learned_by_job = 0.0

    @property
    def now(self) -> datetime:
        """By its clock."""
        return _BEGAN + timedelta(seconds=self.world.at)

    @property
    def running(self) -> bool:
        return self.worker.pid is not None

    @property
    def awake(self) -> bool:
        """Whether processes run."""
        return self.world.holds("screen_on") or self.wake_lock.in_use or self.world.at < self.awake_until

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

    def live(self) -> Self:
        end = self.world.days * DAY
        while self.world.at < end:
            at = self.world.at
            changes_at = self.world.next_event
            ticks_at = at + max(0.0, self.timer) if self.awake else inf
            idle_at = self.screen_off_since + MINUTE * self.settings.gate.idle_minutes
            queued_at = DAY * (at // DAY) + HOUR * QUEUED_HOUR
            later = (one for one in (self.awake_until, idle_at, queued_at) if one > at)
            self._pass(min(changes_at, ticks_at, self.others_at, self.hook_at, end, *later))
            at = self.world.at
            if at == changes_at:
                self._change()
            if at == self.others_at:
                self._stay_awake(self.random.uniform(*FOR_OTHERS))
                mean = OTHERS_PLUGGED if self.plugged else OTHERS_UNPLUGGED
                self.others_at = at + self.random.expovariate(1 / mean)
            if at == self.hook_at:
                self._idle_hook()
            if at == queued_at and self.job is None:  # the text came in by day
                self.job, self.learned_by_job = self._queue_job(), 0.0
            if self.job is not None and self.learned_by_job >= HOUR * JOB_HOURS:
                self.scheduler.cancel(self.job, self.now)
                self.job, self.learned_by_job = None, 0.0
            if self.awake and self.timer <= 1e-9:
                self._tick()
        self.store.close()
        return self

    def _pass(self, to: float) -> None:
        """Let time pass in which nothing changes."""
        seconds = to - self.world.at
        eligible = self.job is not None and self.world.eligible(self.settings.gate, self.idle_seconds)
        self.learned_by_job += seconds * self.running
        self.eligible += seconds * eligible
        self.used += seconds * (eligible and self.running)
        self.idle += seconds * (self.job is None)
        if self.awake:
            self.timer -= seconds
            if self.first_start is not None and eligible:
                self.first_start += seconds
        self.world.advance(to, learning=self.running)

    def _change(self) -> None:
        """Something in the world is another."""
        before, self.screen_off_since = self.screen_off_since, self.world.last_end("screen_on", self.screen_off_since)
        if self.screen_off_since != before and not self.world.holds("screen_on"):
            self._stay_awake(AFTER_USE)
        if self.plugged != self.world.holds("plugged"):
            self.plugged = not self.plugged
            self.first_start = 0.0 if self.plugged else None
            self._stay_awake(AFTER_PLUG)
        if not self.plugged or self.world.holds("screen_on"):
            self.hook_at = inf
        elif self.hook_at == inf:
            idle_at = max(self.world.at, self.screen_off_since + STAMP_IDLE_SECONDS)
            self.hook_at = idle_at + self.random.uniform(0, HOOK_SLOP)
        self.watchful = AFTER_A_CHANGE
        if self.running:
            self.timer = min(self.timer, self.settings.tick_seconds)
            self._judge(was_running=True)

    def _idle_hook(self) -> None:
        """What termux/idle-hook.sh does."""
        self._stay_awake(AFTER_PLUG)
        self.folder.idle_stamp.touch()
        os.utime(self.folder.idle_stamp, (self.now.timestamp(), self.now.timestamp()))
        self.fresh_look.begin(self.now)
        self.timer = 0.0
        self.hook_at += HOOK_PERIOD

    def _stay_awake(self, seconds: float) -> None:
        self.awake_until = max(self.awake_until, self.world.at + seconds)

    def _queue_job(self) -> str:
        """Queue a job that has more steps than it will ever make; its id."""
        job = new_job(model=self.settings.model, immediate=False, total_steps=10**6, created_at=self.now)
        return self.store.jobs.add(job).id

    def _tick(self) -> None:
        """A tick of the daemon's, and when the next one is due."""
        was_running, polls = self.running, self.polls
        self.memory.value, self.disk.value = self.world.memory_bytes, self.world.disk_bytes
        self.scheduler.tick(self.now)
        while any(source.busy for source in self.polled):
            time.sleep(0)  # their answers are there at the next tick
        self.fresh_look.settle(self.scheduler.readings)
        if self.job is None:
            self.wakeups += 1 + self.polls - polls
        self._judge(was_running=was_running)
        if was_running and not self.running:
            self.paused_at = self.world.at
        if self.running and not was_running:
            self.flaps += self.world.at - self.paused_at < self.settings.gate.minimum_pause_seconds
            self.watchful = AFTER_A_CHANGE
            if self.first_start is not None:
                self.first_starts.append(self.first_start)
                self.first_start = None
        self.timer = seconds_to_next_tick(self.settings, self.scheduler, self.fresh_look)
        self.watchful -= 1
        if self.running and self.watchful < 0 and not self.close_to_a_threshold:
            self.timer = STRIDE

    def _judge(self, *, was_running: bool) -> None:
        """Count the time in which a job went on without a condition, for longer than it takes to notice."""
        if not was_running or not self.world.violated(self.settings.gate, self.idle_seconds):
            self.violated_since = inf
            return
        self.violated_since = min(self.violated_since, self.world.at)
        late = self.world.at - self.violated_since - NOTICE_SECONDS
        if late > 1e-6:
            self.violation += late
            self.violated_since += late

    def _source(self, ask: Callable[[], Any], *, idle_seconds: float, training_seconds: float) -> Background[Any]:
        """A source that is polled as the daemon's own, in a thread."""

        def counted() -> Any:
            self.polls += 1
            return ask()

        made = Background(counted, self.pace, idle_seconds=idle_seconds, training_seconds=training_seconds)
        self.polled.append(made)
        return made

    def _daemon(self) -> Scheduler:
        world, self.wake_lock = self.world, WakeLock()
        self.memory, self.disk = FixedSensor("memory", 0.0, "bytes"), FixedSensor("disk", 0.0, "bytes")

        def battery() -> dict[str, Value]:
            if (said := world.battery_says()) is None:
                raise ChildFailed("termux-battery-status did not answer within 10 s")
            return parse(said)

        answers = self._source(lambda: screen_property(world.screen_says()), idle_seconds=15, training_seconds=3)
        screen = Polled("screen", None, "getprop", answers, bool)
        sensors: list[Sensor] = [
            *battery_sensors(self._source(battery, idle_seconds=60, training_seconds=5)),
            screen,
            ScreenIdleness(screen, self.folder.idle_stamp, lambda: world.at),
            self.memory,
            self.disk,
        ]
        return Scheduler(
            self.store,
            self.folder,
            SensorSet(sensors=sensors, pace=self.pace),
            self.worker,
            self.settings,
            model_problem=lambda: None,
            planner=_no_plan,
            wake_lock=self.wake_lock,
            local=lambda now: now,
            uptime=lambda: world.at,
        )


def _no_plan(*_: object) -> Any:
    """A planner that nobody asks."""
    raise AssertionError("no job is asked for here")
