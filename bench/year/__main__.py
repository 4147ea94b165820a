"""A year of a phone's life on a fake clock, through the real gate, scheduler, parsers and database.

python -m bench.year [--days 365] [--seed 0 ...] [--timer-days 7] [--quick]

A job always waits. What counts: seconds trained while a condition was truly violated for longer than one poll, starts
within the minimum pause, pauses whose blockers are not the true cause, and the part of the truly eligible time that
was used. Between two changes of the world, ticks in which nothing can differ are left out; for
some days, by the daemon's own timer and with a clock that is set five times a day, none is.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.harness import Limit, finish, parser, progress, start, table
from bench.year.parts import Number, Worker, battery, no_plan, queued_job
from bench.year.timer import live_by_timer
from bench.year.world import DAY, HOUR, World
from pocketllm.daemon.conditions.android_battery import battery_sensors
from pocketllm.daemon.conditions.android_screen import ScreenIdleness, screen_property
from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.poller import Asked, Background, Polled, ProbeFailed
from pocketllm.daemon.conditions.readings import Sensor
from pocketllm.daemon.conditions.wake_lock import WakeLock
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.scheduler import Scheduler
from pocketllm.daemon.settings import Settings
from pocketllm.storage.store import Store

LIMITS = {
    "violation_s": Limit(at_most=0, always=True),
    "flaps": Limit(at_most=0, always=True),
    "unexplained_pauses": Limit(at_most=0, always=True),
    "eligible_used": Limit(at_least=0.95),
    "timer_late_s": Limit(at_most=1.5, always=True),
}
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
#: Ticks that are left out where nothing changes: one in so many seconds is made.
_STRIDE_IDLE, _STRIDE_LEARNING = 60.0, 30.0
#: Polls after a change that are all made.
_AFTER_A_CHANGE = 5
#: How long the phone takes to be back.
_REBOOT_SECONDS = 60.0
#: Degrees and percent from a threshold within which no tick is left out.
_CLOSE = 1.0
#: What may be blamed for what.
_FAULTS = {
    "silent": {"power", "plug", "battery", "temperature", "health"},
    "lying": {"power", "plug", "battery", "temperature", "health"},
    "blind": {"screen", "idle"},
    "weak": {"charger"},
}


@dataclass
class Seen:
    """What a year came to."""

    violation: float = 0.0
    flaps: int = 0
    unexplained: list[str] = field(default_factory=list)
    pauses: int = 0
    learned: float = 0.0
    eligible: float = 0.0
    used: float = 0.0
    ticks: int = 0
    late: float = 0.0  #: by the daemon's own timer: the longest time from when a tick was due


class Life:
    """One world with one daemon in it."""

    def __init__(self, world: World, folder: Path, settings: Settings) -> None:
        self.world, self.settings = world, settings
        self.store, self.folder = Store.open(folder / "year.db"), DataFolder(folder)
        self.worker, self.seen = Worker(), Seen()
        self.offset = 0.0  # of the wall clock
        self.screen_off_since = 0.0
        self.violated_since: float | None = None
        self.paused_at: float | None = None
        self.watchful = 0  # polls still to be made, one by one
        self.scheduler = self._daemon()
        queued_job(self.store, settings, self.now)

    @property
    def now(self) -> datetime:
        """By the wall clock."""
        return _BEGAN + timedelta(seconds=self.world.at + self.offset)

    @property
    def idle_seconds(self) -> float:
        """In truth."""
        return 0.0 if self.world.holds("screen_on") else self.world.at - self.screen_off_since

    @property
    def running(self) -> bool:
        """Whether a worker runs."""
        return self.worker.pid is not None

    @property
    def days(self) -> int:
        """How long it lasts."""
        return self.world.days

    @property
    def asleep(self) -> bool:
        """Whether the processor sleeps, so that nobody can look."""
        return not self.running and self.world.holds("suspended")

    def live(self) -> Seen:
        """The whole time."""
        end = self.world.days * DAY
        while self.world.at < end:
            self.pass_until(min(end, self._next_tick()))
            if not self.asleep:
                self.tick()
        self.store.close()
        return self.seen

    def _next_tick(self) -> float:
        poll = self.settings.tick_seconds if self.running else self.settings.idle_tick_seconds
        at = self.world.at
        if self.watchful > 0 or self._close_to_a_threshold():
            self.watchful -= 1
            return at + poll
        stride = at + (_STRIDE_LEARNING if self.running else _STRIDE_IDLE)
        number = bisect_left(self.world.events, at + 1e-9)
        change = self.world.events[number] if number < len(self.world.events) else stride
        if change > stride:
            return stride
        self.watchful = _AFTER_A_CHANGE
        return at + poll * max(1.0, -(-(change - at) // poll))  # the first poll that sees it

    def _close_to_a_threshold(self) -> bool:
        gate, world = self.settings.gate, self.world
        if not self.running:
            return False
        return (
            world.celsius > gate.temperature_stop_celsius - _CLOSE or world.level < gate.battery_stop_percent + _CLOSE
        )

    def pass_until(self, to: float) -> None:
        """Let time pass, change by change."""
        events = self.world.events
        while self.world.at < to:
            number = bisect_left(events, self.world.at + 1e-9)
            upto = min(to, events[number]) if number < len(events) else to
            self._count(upto - self.world.at)
            self.world.advance(upto, learning=self.running)
            self._happens(upto)

    def _happens(self, at: float) -> None:
        world = self.world
        if world.holds("screen_on"):
            self.screen_off_since = at
        else:
            ended = [span.end for span in world.spans_ending("screen_on", at)]
            self.screen_off_since = max([self.screen_off_since, *ended])
        for when, jump in world.jumps:
            if when == at:
                self.offset += jump
        if at in world.reboots:
            self.worker.kill()
            self._count(_REBOOT_SECONDS)
            world.advance(at + _REBOOT_SECONDS, learning=False)
            self.scheduler = self._daemon()
            self.scheduler.recover(self.now)
            self.paused_at = None
        violated = self.running and bool(world.violated(self.settings.gate, self.idle_seconds))
        if not violated:
            self.violated_since = None
        elif self.violated_since is None:
            self.violated_since = at

    def _count(self, seconds: float) -> None:
        if self.running:
            self.seen.learned += seconds
        if self.world.eligible(self.settings.gate, self.idle_seconds):
            self.seen.eligible += seconds
            self.seen.used += seconds * self.running

    def tick(self) -> None:
        """Let the daemon look at the world, and judge what it does."""
        was_running, world = self.running, self.world
        self.scheduler.tick(self.now)
        self.seen.ticks += 1
        if was_running and self.violated_since is not None:
            # Counted once, when it ends or grows; what one poll takes to see it is no violation.
            late = world.at - self.violated_since - self.settings.tick_seconds
            if late > 1e-6:
                self.seen.violation += late
                self.violated_since = world.at - self.settings.tick_seconds
        if was_running and not self.running:
            self._paused()
        elif not was_running and self.running:
            self.watchful = _AFTER_A_CHANGE
            if self.paused_at is not None and world.at - self.paused_at < self.settings.gate.minimum_pause_seconds:
                self.seen.flaps += 1

    def _paused(self) -> None:
        world = self.world
        self.seen.pauses += 1
        self.violated_since, self.paused_at = None, world.at
        causes = world.violated(self.settings.gate, self.idle_seconds)
        for fault, names in _FAULTS.items():
            if world.holds(fault):
                causes |= names
        blamed = {blocker.name for blocker in self.scheduler.verdict.blockers}
        if not blamed or not blamed <= causes:
            self.seen.unexplained.append(f"{world.at / HOUR:.2f} h: {'; '.join(self.scheduler.verdict.reasons)}")

    def _daemon(self) -> Scheduler:
        world, clock = self.world, lambda: self.world.at
        screen = Polled("screen", None, "getprop", _Direct(lambda: screen_property(world.screen_says())), bool)
        sensors: list[Sensor] = [
            *battery_sensors(_Direct(lambda: battery(world))),
            screen,
            ScreenIdleness(screen, self.folder.idle_stamp, clock),
            Number("memory", "bytes", lambda: world.memory_bytes),
            Number("disk", "bytes", lambda: world.disk_bytes),
        ]
        return Scheduler(
            self.store,
            self.folder,
            SensorSet(sensors=sensors),
            self.worker,
            self.settings,
            model_problem=lambda: None,
            planner=no_plan,
            wake_lock=WakeLock(),
            local=lambda now: now,
            uptime=clock,
        )


class _Direct(Background[Any]):
    """A source that answers at once."""

    def __init__(self, ask: Any) -> None:
        self._ask = ask

    def latest(self, now: datetime) -> Asked[Any]:
        """See Background."""
        try:
            return Asked(at=now, answer=self._ask(), problem=None)
        except ProbeFailed as error:
            return Asked(at=now, answer=None, problem=str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    logging.disable(logging.WARNING)
    days, timer_days = (3, 1) if options.quick else (options.days, options.timer_days)
    began = time.monotonic()
    lives: dict[str, Seen] = {}
    for seed in options.seed:
        progress(f"seed {seed}: {days} days ...")
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(data_dir=Path(folder))
            lives[str(seed)] = Life(World(seed=seed, days=days), Path(folder), settings).live()
    progress(f"{timer_days} days by the daemon's own timer ...")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        world = World(seed=options.seed[0], days=timer_days, clock_is_set_daily=True)
        lives["by timer"] = live_by_timer(Life(world, Path(folder), settings))
    seconds = time.monotonic() - began
    seen = list(lives.values())
    for seed, life in lives.items():
        for pause in life.unexplained[:5]:
            progress(f"  seed {seed}, unexplained: {pause}")
    values: dict[str, float | None] = {
        "violation_s": sum(life.violation for life in seen),
        "flaps": sum(life.flaps for life in seen),
        "unexplained_pauses": sum(len(life.unexplained) for life in seen),
        "eligible_used": min(life.used / life.eligible if life.eligible else 1.0 for life in seen),
        "timer_late_s": lives["by timer"].late,
        "wall_s": seconds,
    }
    lengths = dict.fromkeys(lives, days) | {"by timer": timer_days}
    rows = [
        [
            seed,
            f"{life.learned / HOUR / lengths[seed]:.2f}",
            f"{life.eligible / HOUR / lengths[seed]:.2f}",
            f"{100 * life.used / life.eligible:.1f}" if life.eligible else "-",
            str(life.pauses),
            f"{life.violation:.0f}",
            str(life.flaps),
            str(len(life.unexplained)),
            f"{life.ticks:,}",
        ]
        for seed, life in lives.items()
    ]
    headings = ["seed", "learned, h a day", "eligible, h a day", "used, %", "pauses", "violated, s"]
    shown = table(
        f"{days} days of a phone",
        [*headings, "flaps", "unexplained", "ticks"],
        rows,
        caption="Eligible: all stricter conditions truly hold. Violated: seconds trained beyond one poll after a "
        "condition to go on was truly lost. Used: the least over the seeds is the value.",
    )
    raw = {seed: vars(life) for seed, life in lives.items()}
    return finish("year", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.year", "A year of a phone's life on a fake clock, through the real gate and scheduler.")
    made.add_argument("--days", type=int, default=365)
    made.add_argument("--timer-days", type=int, default=7, help="days by the daemon's own timer, each tick as it comes")
    made.add_argument("--seed", type=int, nargs="+", default=[0], help="one life for each")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
