"""Nights of a phone that sleeps, through the real gate, scheduler, pollers and parsers; and its service under runit.

With its screen off a phone sleeps, and the daemon's timers stand still: time passes for the daemon while something
keeps the phone awake, which is the screen, a plug that goes in or out, other programs, Android's idle hook, or a wake
lock while it is held. A job is queued each evening. What counts: awake seconds in which it might have begun before it
does, after each time that the charger is plugged in; seconds trained against a condition for longer than a poll takes
to see it; the part of the eligible time that was used; and how often the daemon wakes an hour while no job waits. No
job starts within the minimum pause. Then the service is installed in a prefix that looks like Termux's and started by
the real runit: by a boot, a login shell and another boot. Supervisors beyond one are counted, and the time from
Android's idle hook to the start of a job.
"""

import logging
import os
import random
import shutil
import time
from math import inf
from pathlib import Path
from typing import Self

import pytest

from bench.common.harness import Limit
from bench.common.world import until
from pocketllm.client import Client
from pocketllm.daemon.conditions.android_screen import STAMP_IDLE_SECONDS
from pocketllm.daemon.conditions.fresh_look import FreshLook
from pocketllm.home import find_target
from pocketllm.server import seconds_to_next_tick
from tests.support.installed_phone import PROGRAMS, InstalledPhone
from tests.support.stress.phone_world import DAY, HOUR, MINUTE, PhoneWorld
from tests.support.stress.report import Report
from tests.support.stress.simulated_phone import SimulatedPhone

LIMITS = {
    "first_start_s_after_plug": Limit(at_most=120),
    "violation_s": Limit(at_most=0, always=True),
    "eligible_used": Limit(at_least=0.9),
    "wakeups_per_hour_idle": Limit(at_most=60),
    "second_supervisor": Limit(at_most=0, always=True),
}
SEED = 0
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
#: What the nights came to.
COUNTED = ("violation", "flaps", "eligible", "used", "idle", "wakeups", "first_starts", "learned")


class Sleeper(SimulatedPhone):
    """Adds whether the phone is awake. The daemon's timer counts awake seconds alone."""

    def __init__(self, world: PhoneWorld, folder: Path) -> None:
        folder.mkdir()
        super().__init__(world, folder)
        self.idle = 0.0  # without a job that waits or runs
        self.wakeups = 0  # of the daemon in that time: ticks, and polls of its sensors
        self.flaps, self.paused_at = 0, -inf  # starts within the minimum pause, and when a job paused
        self.first_starts: list[float] = []  # of each plug: awake and eligible until the first start
        self.random = random.Random(world.seed)
        self.fresh_look = FreshLook(self.wake_lock, self.pace, lambda: world.at)
        self.awake_until = 60.0  # at first it boots
        self.timer = 0.0  # awake seconds until the next tick
        self.watchful = 0  # ticks of which none is left out
        self.others_at, self.hook_at = OTHERS_UNPLUGGED, inf
        self.plugged = False
        self.first_start: float | None = None  # seconds so far; None: unplugged, or it has begun
        self.job: str | None = None
        self.learned_by_job = 0.0

    @property
    def awake(self) -> bool:
        """Whether processes run."""
        return self.world.holds("screen_on") or self.wake_lock.in_use or self.world.at < self.awake_until

    def live(self) -> Self:
        """The whole time."""
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
                self.job, self.learned_by_job = self.queue_job(), 0.0
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
        eligible = self.count(seconds, has_job=self.job is not None)
        self.learned_by_job += seconds * self.running
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
            self.judge(was_running=True, notice_seconds=NOTICE_SECONDS)

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

    def _tick(self) -> None:
        """A tick of the daemon's, and when the next one is due."""
        was_running, polls = self.running, self.polls
        self.scheduler.tick(self.now)
        while any(source.busy for source in self.polled):
            time.sleep(0)  # their answers are there at the next tick
        self.fresh_look.settle(self.scheduler.readings)
        if self.job is None:
            self.wakeups += 1 + self.polls - polls
        self.judge(was_running=was_running, notice_seconds=NOTICE_SECONDS)
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


def under_runit(model: Path, folder: Path) -> tuple[int, float]:
    """The supervisors beyond one after a boot and a login, and the seconds from the idle hook to a job's start."""
    phone = InstalledPhone(folder, model)
    try:
        phone.boot()
        until(lambda: phone.daemon is not None, "the daemon after a boot")
        phone.log_in()
        phone.boot().wait(timeout=30)
        supervisors = len(phone.supervisors())
        with Client(find_target(None, phone.data)) as client:
            notes = [{"text": f"Note {number}: wind west.", "source": "notes"} for number in range(40)]
            client.post("texts", body=notes)
            until(lambda: client.get("jobs", limit=1)["data"], "a job that waits")
            began = time.monotonic()
            phone.idle()
            until(lambda: client.get("jobs", limit=1)["data"][0]["started_at"] is not None, "its start")
            return supervisors - 1, time.monotonic() - began
    finally:
        phone.switch_off()


@pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason="runit is not installed: apt-get install runit")
def test_a_phone_that_sleeps_learns_at_night(
    report: Report, tiny_shape: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    life = Sleeper(PhoneWorld(seed=SEED, days=30 if report.full else 2), tmp_path / "life").live()
    assert life.flaps == 0
    second, seconds = under_runit(tiny_shape, tmp_path / "phone")
    report.values = {
        "first_start_s_after_plug": max(life.first_starts, default=None),
        "violation_s": life.violation,
        "eligible_used": life.used / life.eligible,
        "wakeups_per_hour_idle": life.wakeups / life.idle * HOUR,
        "second_supervisor": float(second),
        "hook_to_start_s": seconds,
    }
    report.raw = {str(SEED): {counted: getattr(life, counted) for counted in COUNTED}}
    report.end()
