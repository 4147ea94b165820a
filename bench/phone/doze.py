"""A phone that sleeps, on a fake clock: for the daemon's parts time passes while something keeps the phone awake.

That is the screen, a plug that goes in or out, other programs, Android's idle hook, and a wake lock while it is held.
The daemon's timer counts awake seconds alone.
"""

from __future__ import annotations

import os
import random
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from bench.year.parts import Number, Worker, battery, no_plan, queued_job
from bench.year.world import DAY, HOUR, MINUTE, World
from pocketllm.daemon.conditions.android_battery import battery_sensors
from pocketllm.daemon.conditions.android_screen import STAMP_IDLE_SECONDS, ScreenIdleness, screen_property
from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.fresh_look import FreshLook
from pocketllm.daemon.conditions.poller import Background, Pace, Polled
from pocketllm.daemon.conditions.readings import Sensor
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.settings import Settings
from pocketllm.server import seconds_to_next_tick
from pocketllm.storage.store import Store

Answer = TypeVar("Answer")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
#: How long the phone stays awake: after the screen goes off or a plug changes, and for another program.
_AFTER_USE, _AFTER_PLUG, _FOR_OTHERS = 5.0, 10.0, (3.0, 12.0)
#: Between two times that other programs wake it: unplugged Android puts them off.
_OTHERS_PLUGGED, _OTHERS_UNPLUGGED = 6 * MINUTE, 20 * MINUTE
#: Android's idle hook: its period, and how much later than that it may run.
_HOOK_PERIOD, _HOOK_SLOP = 15 * MINUTE, 5 * MINUTE
#: While a job runs and nothing changes, one tick in so many seconds is made.
_STRIDE, _AFTER_A_CHANGE = 30.0, 8
#: Each evening at this hour a job is queued, which takes as many hours of training.
_QUEUED_HOUR, _JOB_HOURS = 20, 5.0
#: What a change may take to be seen: the battery is polled every 5 s while a job runs, answers, and a tick reads it.
NOTICE_SECONDS = 10.0


@dataclass
class Seen:
    """What the nights came to. Seconds."""

    violation: float = 0.0
    eligible: float = 0.0
    used: float = 0.0
    idle: float = 0.0  #: without a job that waits or runs
    wakeups: int = 0  #: of the daemon in that time: ticks, and polls of its sensors
    first_starts: list[float] = field(default_factory=list)  #: of each plug: awake and eligible until the first start
    learned: float = 0.0


class Phone:
    """The world, the daemon's parts in it, and whether it is awake."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.seen, self.worker = world, Seen(), Worker()
        self.settings = Settings(data_dir=folder)
        self._random = random.Random(world.seed)
        self._folder, self._store = DataFolder(folder), Store.open(folder / "phone.db")
        self._pace, self._wake_lock = Pace(), WakeLock()
        self._polls = 0
        self._polled: list[Background[Any]] = []
        self._look = FreshLook(self._wake_lock, self._pace, lambda: world.at)
        self._scheduler = self._daemon()
        self._awake_until = 60.0  # at first it boots
        self._timer = 0.0  # awake seconds until the next tick
        self._watchful = 0  # ticks of which none is left out
        self._others_at, self._hook_at = _OTHERS_UNPLUGGED, inf
        self._screen_off_since = 0.0
        self._violated_since = inf
        self._plugged = False
        self._first_start_seconds: float | None = None  # None: unplugged, or it has begun
        self._job: str | None = None
        self._learned = 0.0  # of that job

    @property
    def now(self) -> datetime:
        """By its clock."""
        return BEGAN + timedelta(seconds=self.world.at)

    @property
    def awake(self) -> bool:
        """Whether processes run."""
        return self.world.holds("screen_on") or self._wake_lock.in_use or self.world.at < self._awake_until

    @property
    def running(self) -> bool:
        """Whether a job runs."""
        return self.worker.pid is not None

    @property
    def idle_seconds(self) -> float:
        """In truth."""
        return 0.0 if self.world.holds("screen_on") else self.world.at - self._screen_off_since

    def live(self) -> Seen:
        """The whole time."""
        end = self.world.days * DAY
        while self.world.at < end:
            at = self.world.at
            number = bisect_left(self.world.events, at + 1e-9)
            changes_at = self.world.events[number] if number < len(self.world.events) else inf
            ticks_at = at + max(0.0, self._timer) if self.awake else inf
            idle_at = self._screen_off_since + MINUTE * self.settings.gate.idle_minutes
            queued_at = DAY * (at // DAY) + HOUR * _QUEUED_HOUR
            later = (one for one in (self._awake_until, idle_at, queued_at) if one > at)
            self._pass(min(changes_at, ticks_at, self._others_at, self._hook_at, end, *later))
            at = self.world.at
            if at == changes_at:
                self._changed()
            if at == self._others_at:
                self._stay_awake(self._random.uniform(*_FOR_OTHERS))
                mean = _OTHERS_PLUGGED if self._plugged else _OTHERS_UNPLUGGED
                self._others_at = at + self._random.expovariate(1 / mean)
            if at == self._hook_at:
                self._hook()
            if at == queued_at and self._job is None:
                self._queue()
            if self._learned >= HOUR * _JOB_HOURS:
                self._end_job()
            if self.awake and self._timer <= 1e-9:
                self._tick()
        self._store.close()
        return self.seen

    def _pass(self, to: float) -> None:
        """Let time pass in which nothing changes."""
        seconds = to - self.world.at
        eligible = self._job is not None and self.world.eligible(self.settings.gate, self.idle_seconds)
        self.seen.eligible += seconds * eligible
        self.seen.used += seconds * (eligible and self.running)
        self.seen.learned += seconds * self.running
        self._learned += seconds * self.running
        self.seen.idle += seconds * (self._job is None)
        if self.awake:
            self._timer -= seconds
            if self._first_start_seconds is not None and eligible:
                self._first_start_seconds += seconds
        self.world.advance(to, learning=self.running)

    def _changed(self) -> None:
        """Something in the world is another."""
        if self.world.holds("screen_on"):
            self._screen_off_since = self.world.at
        elif any(span.end == self.world.at for span in self.world.spans_ending("screen_on", self.world.at)):
            self._screen_off_since = self.world.at
            self._stay_awake(_AFTER_USE)
        if self._plugged != self.world.holds("plugged"):
            self._plugged = not self._plugged
            self._first_start_seconds = 0.0 if self._plugged else None
            self._stay_awake(_AFTER_PLUG)
        if not self._plugged or self.world.holds("screen_on"):
            self._hook_at = inf
        elif self._hook_at == inf:
            idle_at = max(self.world.at, self._screen_off_since + STAMP_IDLE_SECONDS)
            self._hook_at = idle_at + self._random.uniform(0, _HOOK_SLOP)
        self._watchful = _AFTER_A_CHANGE
        if self.running:
            self._timer = min(self._timer, self.settings.tick_seconds)
            self._judge(was_running=True)

    def _hook(self) -> None:
        """What termux/idle-hook.sh does."""
        self._stay_awake(_AFTER_PLUG)
        self._folder.idle_stamp.touch()
        os.utime(self._folder.idle_stamp, (self.now.timestamp(), self.now.timestamp()))
        self._look.begin(self.now)
        self._timer = 0.0
        self._hook_at += _HOOK_PERIOD

    def _stay_awake(self, seconds: float) -> None:
        self._awake_until = max(self._awake_until, self.world.at + seconds)

    def _tick(self) -> None:
        """A tick of the daemon's, and when the next one is due."""
        was_running, polls = self.running, self._polls
        self._scheduler.tick(self.now)
        while any(source.busy for source in self._polled):
            time.sleep(0)  # their answers are there at the next tick
        self._look.settle(self._scheduler.readings)
        if self._job is None:
            self.seen.wakeups += 1 + self._polls - polls
        self._judge(was_running=was_running)
        if self.running and not was_running:
            self._watchful = _AFTER_A_CHANGE
            if self._first_start_seconds is not None:
                self.seen.first_starts.append(self._first_start_seconds)
                self._first_start_seconds = None
        self._timer = seconds_to_next_tick(self.settings, self._scheduler, self._look)
        self._watchful -= 1
        if self.running and self._watchful < 0 and not self._close_to_a_threshold:
            self._timer = _STRIDE

    def _queue(self) -> None:
        """A job for the night: the text came in by day."""
        self._job, self._learned = queued_job(self._store, self.settings, self.now).id, 0.0

    def _end_job(self) -> None:
        assert self._job is not None
        self._scheduler.cancel(self._job, self.now)
        self._job, self._learned = None, 0.0

    @property
    def _close_to_a_threshold(self) -> bool:
        gate = self.settings.gate
        return (
            self.world.celsius > gate.temperature_stop_celsius - 1 or self.world.level < gate.battery_stop_percent + 1
        )

    def _judge(self, *, was_running: bool) -> None:
        """Count the time in which a job went on although it should not have."""
        if not was_running or not self.world.violated(self.settings.gate, self.idle_seconds):
            self._violated_since = inf
            return
        self._violated_since = min(self._violated_since, self.world.at)
        late = self.world.at - self._violated_since - NOTICE_SECONDS
        if late > 0:
            self.seen.violation += late
            self._violated_since += late

    def _daemon(self) -> Scheduler:
        world = self.world
        screen_answers = self._poll(lambda: screen_property(world.screen_says()), 15, 3)
        screen = Polled("screen", None, "getprop", screen_answers, bool)
        sensors: list[Sensor] = [
            *battery_sensors(self._poll(lambda: battery(world), 60, 5)),
            screen,
            ScreenIdleness(screen, self._folder.idle_stamp, lambda: world.at),
            Number("memory", "bytes", lambda: world.memory_bytes),
            Number("disk", "bytes", lambda: world.disk_bytes),
        ]
        return Scheduler(
            self._store,
            self._folder,
            SensorSet(sensors=sensors, pace=self._pace),
            self.worker,
            self.settings,
            model_problem=lambda: None,
            planner=no_plan,
            wake_lock=self._wake_lock,
            local=lambda now: now,
            uptime=lambda: world.at,
        )

    def _poll(self, ask: Callable[[], Answer], idle_seconds: float, training_seconds: float) -> Background[Answer]:
        def counted() -> Answer:
            self._polls += 1
            return ask()

        made = Background(counted, self._pace, idle_seconds=idle_seconds, training_seconds=training_seconds)
        self._polled.append(made)
        return made
