"""What keeps new text from being learned: kills from outside, jobs that came to nothing, a clock that was wrong."""

import os
import signal
from datetime import timedelta

import pytest

from pocketllm.daemon.conditions.gate import Blocker
from pocketllm.daemon.scheduling.attempts import LONGEST_RETRY, MAX_ATTEMPTS, RETRY_SECONDS
from pocketllm.daemon.scheduling.worker_process import Exit
from pocketllm.storage.tables import JobState
from tests.support.daemon.scheduler_world import SchedulerWorld


def hold(world: SchedulerWorld) -> Blocker | None:
    """The blocker that is no condition."""
    return {blocker.name: blocker for blocker in world.scheduler.verdict.blockers}.get("held back")


def test_only_the_workers_own_end_is_a_crash() -> None:
    outside = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGXCPU", "SIGUSR1")
    faults = ("SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGFPE")
    codes = {-getattr(signal, name): name in faults for name in (*outside, *faults)}
    codes |= {0: True, 1: True, os.EX_TEMPFAIL: False, 137: True}
    assert {code: Exit(job_id="job-1", code=code, last_words="").is_crash for code in codes} == codes


def test_kills_from_outside_never_fail_a_job_but_the_wait_grows(world: SchedulerWorld, running: str) -> None:
    for number in range(3 * MAX_ATTEMPTS):
        now = world.worker_ends(-signal.SIGKILL)
        wait = min(timedelta(seconds=RETRY_SECONDS * 2**number), LONGEST_RETRY)
        job = world.job(running)
        assert (job.state, job.attempts, job.not_before) == (JobState.PAUSED, 0, now + wait)
        blocker = hold(world)
        assert blocker is not None and blocker.until == now + wait
        assert blocker.message.startswith(f"{running}: the worker was killed by signal 9; next try at ")
        assert not world.scheduler.verdict.allowed
        assert world.scheduler.expected_at(now) == now + wait, "the conditions would allow it now"
        world.tick(wait.total_seconds() - 1)
        assert len(world.runner.started) == number + 1
        world.tick(1)
        assert len(world.runner.started) == number + 2 and hold(world) is None
    world.step(running)
    now = world.worker_ends(-signal.SIGTERM)
    assert world.job(running).not_before == now + timedelta(seconds=RETRY_SECONDS)


def test_a_job_that_failed_holds_its_texts_back_for_a_day_and_says_so(world: SchedulerWorld) -> None:
    job_id = world.request_by_words()
    world.store.jobs.fail(job_id, error="too little memory", now=world.clock.now)
    world.runner.ends(0)
    failed, now = world.clock.now, world.tick()
    blocker = hold(world)
    assert blocker == Blocker(
        name="held back",
        message=f"{job_id} failed; `pocketllm train` retries its texts, or the daemon does from 2026-03-02 12:00",
        since=failed,
        until=failed + timedelta(days=1),
    )
    assert world.scheduler.expected_at(now) == blocker.until
    world.tick(86_400)
    assert hold(world) is None and len(world.runner.started) == 2


def test_a_job_that_was_cancelled_holds_its_texts_back_and_says_what_ends_that(world: SchedulerWorld) -> None:
    job_id = world.request_by_words()
    world.scheduler.cancel(job_id, world.clock.now)
    now = world.tick()
    blocker = hold(world)
    assert blocker is not None and blocker.until is None
    assert blocker.message == f"{job_id} cancelled; `pocketllm train` retries its texts"
    assert world.scheduler.expected_at(now) is None
    world.add(19, "other")
    world.tick()
    assert hold(world) == blocker and len(world.runner.started) == 1
    assert world.request(immediate=True, seed=None) != job_id
    world.tick()
    assert hold(world) is None and len(world.runner.started) == 2


def test_a_job_that_was_cancelled_before_it_started_keeps_its_texts_back_too(world: SchedulerWorld) -> None:
    world.power.value = False
    world.scheduler.cancel(world.request_by_words(), world.clock.now)
    world.plug_in()
    assert world.runner.started == [] and hold(world) is not None
    world.add(19, "newer")
    world.tick()
    assert world.runner.started == []
    world.add(1, "enough")
    world.tick()
    assert world.job(world.runner.started[0]).texts == 3


def test_too_little_new_text_is_held_back_by_nothing(world: SchedulerWorld) -> None:
    world.add(19)
    world.scheduler.cancel(world.request(), world.clock.now)
    world.tick()
    assert hold(world) is None


def test_a_job_that_its_owner_paused_is_said(world: SchedulerWorld, running: str) -> None:
    world.scheduler.pause(running, world.clock.now)
    since = world.tick()
    world.tick(3600)
    blocker = hold(world)
    assert blocker is not None and (blocker.since, blocker.until) == (since, None)
    assert blocker.message == f"{running} is paused by the owner; `pocketllm train` resumes it"


# The clock.

FUTURE = timedelta(days=400)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_job_that_ended_in_the_future_holds_nothing_newer_back(world: SchedulerWorld, end: str) -> None:
    """The clock was wrong by a year while a job came to nothing, and is right again."""
    world.clock.now += FUTURE
    first = world.request_by_words()
    if end == "cancelled":
        world.scheduler.cancel(first, world.clock.now)
    else:
        world.store.jobs.fail(first, error="too little memory", now=world.clock.now)
        world.runner.ends(0)
    world.clock.now -= FUTURE
    world.add(20, "newer")
    world.tick()
    world.tick()
    assert len(world.runner.started) == 2
    second = world.runner.started[1]
    # The second one is the last, whatever its date says.
    world.store.jobs.fail(second, error="again", now=world.clock.now)
    world.worker_ends(0)
    world.tick()
    assert len(world.runner.started) == 2
    blocker = hold(world)
    assert blocker is not None and blocker.message.startswith(second)


def test_a_snooze_that_was_set_in_the_future_is_none(world: SchedulerWorld) -> None:
    world.add(20)
    wrong = world.clock.now + FUTURE
    world.store.preferences.snooze(wrong + timedelta(hours=1), wrong)
    world.tick()
    assert world.scheduler.verdict.allowed and len(world.runner.started) == 1
    now = world.clock.now
    world.store.preferences.snooze(now + timedelta(hours=1), now)
    world.tick()
    [blocker] = world.scheduler.verdict.blockers
    assert (blocker.name, blocker.until) == ("snooze", now + timedelta(hours=1))
    assert world.store.preferences.snoozed_until(now - timedelta(seconds=1)) is None


def test_a_job_is_not_expected_before_the_end_of_a_snooze(world: SchedulerWorld) -> None:
    for _ in range(25):
        world.tick(3600)  # the conditions held all day
    until = world.clock.now + timedelta(hours=9)
    world.store.preferences.snooze(until, world.clock.now)
    now = world.tick()
    assert world.scheduler.expected_at(now) == until


def test_an_idle_time_of_the_future_is_no_forecast(world: SchedulerWorld) -> None:
    world.clock.now += FUTURE
    world.tick()
    world.unplug(3600)
    world.clock.now -= FUTURE
    assert world.scheduler.expected_at(world.tick()) is None
