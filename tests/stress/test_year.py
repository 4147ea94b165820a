"""A year of a phone's life on a fake clock, through the real gate, scheduler, parsers and database.

A job always waits. What counts: seconds trained while a condition was truly violated for longer than one poll, starts
within the minimum pause, pauses whose blockers are not the true cause, and the part of the truly eligible time that
was used. Between two changes of the world, ticks in which nothing can differ are left out; for some days, by the
daemon's own timer and with a clock that is set five times a day, none is.
"""

import asyncio
import logging
import selectors
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Self

import pytest
import time_machine

from bench.common.harness import Limit
from pocketllm.server import Ticker
from tests.support.stress.phone_world import DAY, HOUR, PhoneWorld
from tests.support.stress.report import Report
from tests.support.stress.simulated_phone import SimulatedPhone

LIMITS = {
    "violation_s": Limit(at_most=0, always=True),
    "flaps": Limit(at_most=0, always=True),
    "unexplained_pauses": Limit(at_most=0, always=True),
    "eligible_used": Limit(at_least=0.95),
    "timer_late_s": Limit(at_most=1.5, always=True),
}
SEED = 0
#: Ticks that are left out where nothing changes: one in so many seconds is made.
STRIDE_IDLE, STRIDE_LEARNING = 60.0, 30.0
#: Polls after a change that are all made.
AFTER_A_CHANGE = 5
#: How long the phone takes to be back.
REBOOT_SECONDS = 60.0
#: What may be blamed for what.
BATTERY = {"power", "plug", "battery", "temperature", "health"}
FAULTS = {"silent": BATTERY, "lying": BATTERY, "blind": {"screen", "idle"}, "weak": {"charger"}}
#: What a life came to.
COUNTED = ("violation", "flaps", "unexplained", "pauses", "learned", "eligible", "used", "ticks", "late")


class Life(SimulatedPhone):
    """One world with one daemon in it."""

    def __init__(self, world: PhoneWorld, folder: Path) -> None:
        folder.mkdir()
        super().__init__(world, folder)
        self.flaps = self.pauses = self.ticks = 0
        self.due = self.late = 0.0  # by the daemon's own timer: when a tick is due, and the longest delay of one
        self.unexplained: list[str] = []
        self.paused_at: float | None = None
        self.watchful = 0  # polls still to be made, one by one
        self.queue_job()

    @property
    def asleep(self) -> bool:
        """Whether the processor sleeps, so that nobody can look. A lit screen wakes it."""
        return not self.running and self.world.holds("suspended") and not self.world.holds("screen_on")

    @property
    def poll_seconds(self) -> float:
        return self.settings.tick_seconds if self.running else self.settings.idle_tick_seconds

    def live(self) -> Self:
        """The whole time."""
        end = self.world.days * DAY
        while self.world.at < end:
            self.pass_until(min(end, self._next_tick()))
            if not self.asleep:
                self.tick()
        self.store.close()
        return self

    def _next_tick(self) -> float:
        at, poll = self.world.at, self.poll_seconds
        if self.watchful > 0 or self.close_to_a_threshold:
            self.watchful -= 1
            return at + poll
        stride, change = at + (STRIDE_LEARNING if self.running else STRIDE_IDLE), self.world.next_event
        if change > stride:
            return stride
        self.watchful = AFTER_A_CHANGE
        return at + poll * max(1.0, -(-(change - at) // poll))  # the first poll that sees it

    def pass_until(self, to: float) -> None:
        """Let time pass, change by change."""
        while self.world.at < to:
            upto = min(to, self.world.next_event)
            self.count(upto - self.world.at)
            self.world.advance(upto, learning=self.running)
            self._change(upto)

    def _change(self, at: float) -> None:
        self.screen_off_since = self.world.last_end("screen_on", self.screen_off_since)
        self.clock_is_off_by += sum(jump for when, jump in self.world.jumps if when == at)
        if at in self.world.reboots:
            self.worker.kill()
            self.count(REBOOT_SECONDS)
            self.world.advance(at + REBOOT_SECONDS, learning=False)
            self.due = max(self.due, self.world.at)
            self.scheduler = self.daemon()
            self.scheduler.recover(self.now)
            self.paused_at = None
        self.judge(was_running=self.running, notice_seconds=self.settings.tick_seconds)

    def tick(self) -> None:
        """Let the daemon look at the world, and judge what it does."""
        was_running, world = self.running, self.world
        self.scheduler.tick(self.now)
        self.ticks += 1
        self.judge(was_running=was_running, notice_seconds=self.settings.tick_seconds)
        if was_running and not self.running:
            self._note_pause()
        elif not was_running and self.running:
            self.watchful = AFTER_A_CHANGE
            if self.paused_at is not None and world.at - self.paused_at < self.settings.gate.minimum_pause_seconds:
                self.flaps += 1

    def _note_pause(self) -> None:
        world = self.world
        self.pauses += 1
        self.paused_at = world.at
        causes = world.violated(self.settings.gate, self.idle_seconds)
        causes |= {name for fault, names in FAULTS.items() if world.holds(fault) for name in names}
        blamed = {blocker.name for blocker in self.scheduler.verdict.blockers}
        if not blamed or not blamed <= causes:
            self.unexplained.append(f"{world.at / HOUR:.2f} h: {'; '.join(self.scheduler.verdict.reasons)}")


class Selector(selectors.SelectSelector):
    """Passes the time that the loop would wait."""

    def __init__(self, pass_seconds: Callable[[float], None]) -> None:
        super().__init__()
        self._pass_seconds = pass_seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See BaseSelector."""
        found = super().select(0)
        if not found and timeout:
            self._pass_seconds(timeout)
        return found


def live_by_timer(life: Life) -> Life:
    """Live a whole life, with each tick when the daemon's own timer makes it, in an event loop of the life's time."""
    end = life.world.days * DAY
    with time_machine.travel(life.now, tick=False) as clock:

        def pass_seconds(seconds: float) -> None:
            life.pass_until(min(end, life.world.at + seconds))
            clock.move_to(life.now)

        def loop() -> asyncio.AbstractEventLoop:
            made = asyncio.SelectorEventLoop(Selector(pass_seconds))
            made.time = lambda: life.world.at  # type: ignore[method-assign]
            return made

        async def tick() -> tuple[float, Sequence[datetime]]:
            if not life.asleep:
                life.late = max(life.late, life.world.at - life.due)
                life.tick()
            life.due = life.world.at + life.poll_seconds
            return life.poll_seconds, life.scheduler.due

        async def live() -> None:
            ticker = Ticker(tick, seconds=life.settings.idle_tick_seconds)
            ticker.start()
            while life.world.at < end:
                await asyncio.sleep(3600.0)
            ticker.stop()

        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(live())
    life.store.close()
    return life


def test_time_passes_from_one_event_to_a_later_one() -> None:
    """For the whole year, in which seconds become too many for a float to tell a nanosecond."""
    world = PhoneWorld(seed=SEED, days=365)
    while (event := world.next_event) < inf:
        assert event > world.at
        world.advance(event, learning=False)
    assert world.at > 364 * DAY


def test_nothing_is_trained_without_leave(report: Report, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    days, timer_days = (365, 7) if report.full else (3, 1)
    began = time.monotonic()
    life = Life(PhoneWorld(seed=SEED, days=days), tmp_path / "life").live()
    world = PhoneWorld(seed=SEED, days=timer_days, clock_is_set_daily=True)
    by_timer = live_by_timer(Life(world, tmp_path / "by timer"))
    lives = {str(SEED): life, "by timer": by_timer}
    report.values = {
        "violation_s": sum(life.violation for life in lives.values()),
        "flaps": float(sum(life.flaps for life in lives.values())),
        "unexplained_pauses": float(sum(len(life.unexplained) for life in lives.values())),
        "eligible_used": min(life.used / life.eligible if life.eligible else 1.0 for life in lives.values()),
        "timer_late_s": by_timer.late,
        "wall_s": time.monotonic() - began,
    }
    report.raw = {name: {counted: getattr(life, counted) for counted in COUNTED} for name, life in lives.items()}
    report.end()
