"""The last nights: what ran, what ended, and what held a job back."""

from datetime import date, timedelta

import pytest

from pocketllm.daemon.scheduling.nights import Night, Nights, night_of
from tests.support.daemon.in_process_app import NOON
from tests.support.daemon.scheduler_world import SchedulerWorld


def last(world: SchedulerWorld, days: int = 1) -> list[Night]:
    return nights(world).recent(world.clock.now, days=days)


def nights(world: SchedulerWorld) -> Nights:
    return Nights(world.store, lambda now: now)


def minutes(world: SchedulerWorld, count: int) -> None:
    for _ in range(count):
        world.tick(60)


def test_a_night_lasts_from_noon_to_noon() -> None:
    assert night_of(NOON - timedelta(seconds=1)) == date(2026, 3, 1)
    assert night_of(NOON) == date(2026, 3, 2)


def test_what_ran_and_what_ended(world: SchedulerWorld) -> None:
    world.add(5)
    job = world.request()
    minutes(world, 11 * 60)
    assert world.runner.job_id == job
    for _ in range(5):
        world.step(job)
    world.power.value = False
    minutes(world, 60)
    world.power.value = True
    minutes(world, 60)
    for _ in range(3):
        world.step(job)
    for step, loss in ((0, 3.5), (8, 3.25)):
        world.store.step_log.evaluate(job, step=step, loss=loss, block_losses={"a": loss}, now=world.clock.now)
    world.succeed(job)
    minutes(world, 1)
    [night] = last(world)
    assert night.night == date(2026, 3, 2)
    assert [(run.job_id, run.steps, run.ended_because) for run in night.runs] == [
        (job, 5, "not on external power"),
        (job, 3, "the job has ended: succeeded"),
    ]
    assert len(night.open) == 2 and night.open_seconds == pytest.approx(12 * 3600, abs=120)
    assert [(one.name, one.seconds) for one in night.held_back] == [("power", 3600)]
    [ended] = night.jobs
    assert (ended.id, ended.step, ended.held_out_loss_before, ended.held_out_loss_now) == (job, 8, 3.5, 3.25)
    assert ended.ended_because == f"learned; adapter of-{job} is served"
    minutes(world, 60)  # past midnight: this night is the last one now
    assert nights(world).last(world.clock.now) == (
        "ran from 12:01 to 01:01 (the job has ended: succeeded), 8 steps; "
        f"{job} learned, held-out loss 3.50 to 3.25; the charger was not connected (1 h 0 min)"
    )


def test_a_window_over_noon_counts_for_each_night_it_reaches_into(world: SchedulerWorld) -> None:
    world.tick()
    for _ in range(30 * 12):
        world.tick(5 * 60)
    tonight, yesterday = last(world, days=2)
    assert tonight.open == yesterday.open
    assert (round(tonight.open_seconds / 3600), round(yesterday.open_seconds / 3600)) == (6, 24)
