"""Nights of a phone that sleeps, through the real gate, scheduler, pollers and parsers.

With its screen off a phone sleeps, and the daemon's timers stand still: time passes for the daemon while something
keeps the phone awake, which is the screen, a plug that goes in or out, other programs, Android's idle hook, or a wake
lock while it is held. A job is queued each evening. What counts: awake seconds in which it might have begun before it
does, after each time that the charger is plugged in; seconds trained against a condition for longer than a poll takes
to see it; the part of the eligible time that was used; and how often the daemon wakes an hour while no job waits. No
job starts within the minimum pause.
"""

import logging
from pathlib import Path

import pytest

from bench.common.harness import Limit
from tests.support.stress.phone_world import HOUR, PhoneWorld
from tests.support.stress.report import Report
from tests.support.stress.simulated_phone import SimulatedPhone

LIMITS = {
    "first_start_s_after_plug": Limit(at_most=120),
    "violation_s": Limit(at_most=0, always=True),
    "eligible_used": Limit(at_least=0.9),
    "wakeups_per_hour_idle": Limit(at_most=60),
}
SEED = 0
#: What the nights came to.
COUNTED = ("violation", "flaps", "eligible", "used", "idle", "wakeups", "first_starts")


def test_a_phone_that_sleeps_learns_at_night(report: Report, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    life = SimulatedPhone(PhoneWorld(seed=SEED, days=30 if report.full else 2), tmp_path / "life").live()
    assert life.flaps == 0
    report.values = {
        "first_start_s_after_plug": max(life.first_starts, default=None),
        "violation_s": life.violation,
        "eligible_used": life.used / life.eligible,
        "wakeups_per_hour_idle": life.wakeups / life.idle * HOUR,
    }
    report.raw = {str(SEED): {counted: getattr(life, counted) for counted in COUNTED}}
    report.end()
