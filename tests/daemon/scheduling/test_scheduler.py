"""The scheduler over a real store, with a worker that is none and times that are passed in."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from pocketllm.daemon.errors import ModelNotReady, NothingToLearn
from pocketllm.daemon.scheduling.attempts import MAX_ATTEMPTS, RETRY_SECONDS
from pocketllm.daemon.scheduling.planning import JobRequest
from pocketllm.storage.tables import BASE, JobState, Requester
from tests.support.daemon.fixed_plan import PREDICTION
from tests.support.daemon.in_process_app import FakeRunner
from tests.support.daemon.scheduler_world import SchedulerWorld

MISSING = "The model 'tiny' is not imported. Run `pocketllm models add`."


def test_without_texts_or_without_a_model_a_request_is_refused(world: SchedulerWorld) -> None:
    with pytest.raises(NothingToLearn, match="POST /texts"):
        world.request()
    world.add(20)
    world.model_problem = MISSING
    with pytest.raises(ModelNotReady, match="pocketllm models add"):
        world.request()
    world.tick()  # nor does so much text queue one
    assert world.store.jobs.open() == []


def test_a_tick_starts_a_job_and_the_next_leaves_it_alone(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request()
    assert world.runner.started == []
    world.tick()
    world.tick()
    assert world.runner.started == [job_id]
    assert (world.scheduler.running_job, world.scheduler.worker_pid) == (job_id, world.runner.pid)
    assert (world.job(job_id).state, world.job(job_id).texts) == (JobState.RUNNING, 1)


def test_with_nothing_to_do_the_gate_is_looked_at_all_the_same(world: SchedulerWorld) -> None:
    world.unplug()
    assert [reading.name for reading in world.scheduler.readings] == ["power", "battery", "memory"]
    assert world.scheduler.verdict.reasons == ["not on external power"]


def test_threads_that_tick_at_once_start_a_job_once(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(world.scheduler.tick, [world.clock.now] * 8))
    assert world.runner.started == [job_id]


def test_when_power_goes_the_worker_is_killed_and_the_job_says_why(world: SchedulerWorld, running: str) -> None:
    world.power.value, world.battery.value = False, 20.0
    world.tick()
    assert world.runner.killed == [running]
    assert (world.job(running).state, world.scheduler.running_job) == (JobState.PAUSED, None)
    assert world.job(running).reasons == ["not on external power", "battery 20 % is below 30 %"]


def test_a_paused_job_goes_on_only_after_the_minimum_pause(world: SchedulerWorld, running: str) -> None:
    world.unplug()
    world.plug_in(1)
    assert world.job(running).reasons == ["paused 1 s ago; waiting 59 s more"]
    world.tick(58)
    assert world.runner.started == [running]
    world.tick(1)
    assert world.runner.started == [running, running]
    assert world.job(running).reasons == []


def test_while_a_job_waits_its_reasons_are_kept_up_to_date(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request()
    world.unplug()
    assert world.job(job_id).reasons == ["not on external power"]
    world.power.value, world.memory.value = True, 1e6
    world.tick()
    assert world.job(job_id).reasons == ["available memory 1 MB is below 700 MB"]
    assert [event.kind for event in world.store.jobs.events(job_id)] == ["queued"]


def test_without_its_model_a_job_waits_and_says_what_to_do(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request()
    world.model_problem = MISSING
    missing_since = world.tick()
    world.tick()
    assert (world.runner.started, world.job(job_id).reasons) == ([], [MISSING])
    [blocker] = world.scheduler.verdict.blockers
    assert (blocker.name, blocker.since) == ("model", missing_since)
    world.model_problem = None
    world.tick()
    assert world.runner.started == [job_id]


def test_the_owners_now_goes_before_older_jobs_and_without_the_charger(world: SchedulerWorld) -> None:
    world.add(5)
    older = world.request()
    world.clock.advance(10)
    now = world.request(immediate=True)
    world.unplug()
    assert world.runner.started == [now]
    assert world.job(older).state is JobState.QUEUED


def test_the_owners_now_waits_for_the_job_that_runs(world: SchedulerWorld, running: str) -> None:
    now = world.request(immediate=True)
    world.tick()
    assert (world.runner.killed, world.runner.job_id) == ([], running)
    assert (world.job(running).reasons, world.job(now).reasons) == ([], [f"waiting for {running}"])
    world.finish(running)
    assert world.runner.started == [running, now]


def test_enough_new_words_queue_one_job(world: SchedulerWorld) -> None:
    world.add(19)
    world.tick()
    assert world.store.jobs.page(after=None, limit=9) == []
    world.add(1, "more")
    world.tick()
    job = world.only_job()
    assert (job.requested_by, job.immediate, job.state) == (Requester.THRESHOLD, False, JobState.RUNNING)
    assert (job.total_steps, job.mode, job.predicted_bytes) == (30, "lora", PREDICTION.peak_bytes)
    world.add(20, "later")
    world.tick()
    assert world.only_job().id == job.id
    world.finish(job.id)
    assert [job.texts for job in world.store.jobs.page(after=None, limit=9)] == [3, 2]


def test_fewer_new_words_queue_a_job_when_the_oldest_have_waited_for_a_week(world: SchedulerWorld) -> None:
    week = 7 * 24 * 3600
    world.add(7)
    world.tick(week)  # less than two fifths of 20
    world.add(1, "more")
    assert world.store.jobs.open() == []
    world.tick(0)
    assert world.only_job().requested_by is Requester.THRESHOLD
    world.finish(world.only_job().id)
    world.add(12, "later")
    world.tick(week - 1)
    assert world.store.jobs.open() == []
    world.tick(1)
    assert len(world.store.jobs.open()) == 1


def test_a_cancelled_jobs_words_do_not_wait_with_newer_ones(world: SchedulerWorld) -> None:
    world.scheduler.cancel(world.request_by_words(), world.clock.now)
    world.tick()
    world.add(8, "later")
    world.tick(7 * 24 * 3600 - 3)
    assert world.store.jobs.open() == [] and "cancelled" in world.scheduler.verdict.reasons[0]
    world.tick(3)
    assert len(world.store.jobs.open()) == 1


@pytest.mark.parametrize("state", ["queued", "running", "paused", "paused by its owner", "after a crash"])
def test_who_asks_for_a_job_goes_on_with_the_open_one(world: SchedulerWorld, state: str) -> None:
    """A second job on the same texts would run to its end to be thrown away."""
    world.power.value = state != "queued"
    job_id = world.request_by_words()
    if state != "queued":
        world.step(job_id)
    if state == "paused":
        world.unplug()
    elif state == "paused by its owner":
        world.scheduler.pause(job_id, world.clock.now)
    elif state == "after a crash":
        world.worker_ends()
    world.power.value = False
    assert world.request(immediate=False, seed=None) == job_id
    assert world.request(immediate=True, seed=None) == job_id == world.only_job().id
    world.tick(61)
    job = world.job(job_id)
    assert (job.state, job.immediate, job.paused_by_owner, job.reasons) == (JobState.RUNNING, True, False, [])
    assert set(world.runner.started) == {job_id}
    assert "hastened" in {event.kind for event in world.store.jobs.events(job_id)}


def test_a_fine_tuning_job_is_not_gone_on_with(world: SchedulerWorld) -> None:
    """It has texts, or a start, of its own."""
    world.add(20)
    now, tuning = world.clock.now, {"seed": None}
    tuned = world.scheduler.queue.request(
        JobRequest(), seed=None, immediate=False, now=now, tuning=tuning, start_from=BASE
    ).id
    assert world.request(immediate=True, seed=None) != tuned


def test_requests_at_once_make_one_job(world: SchedulerWorld) -> None:
    world.add(20)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: world.request(immediate=True, seed=None), range(8)))
    assert set(found) == {world.only_job().id}


def test_who_asks_for_a_certain_job_gets_one_of_its_own(world: SchedulerWorld) -> None:
    world.power.value = False
    waiting = world.request_by_words()
    assert world.request(immediate=True, seed=3) != waiting
    assert not world.job(waiting).immediate


def test_a_job_of_the_threshold_is_withdrawn_when_another_has_learned_its_texts(world: SchedulerWorld) -> None:
    world.power.value = False
    waiting = world.request_by_words()
    now = world.request(immediate=True, seed=1)
    world.tick()
    world.power.value = True
    world.finish(now)
    assert (world.job(waiting).state, world.runner.started) == (JobState.CANCELLED, [now])
    assert "trained on its texts" in world.store.jobs.events(waiting)[-1].message


def test_a_crash_is_tried_again_later_and_later_and_then_given_up(world: SchedulerWorld, running: str) -> None:
    for attempt in range(1, MAX_ATTEMPTS):
        world.worker_ends()
        wait = RETRY_SECONDS * 2 ** (attempt - 1)
        job = world.job(running)
        assert (job.state, job.attempts) == (JobState.PAUSED, attempt)
        assert job.reasons[0].startswith("the worker exited with code 1: boom; next try at ")
        world.tick(wait - 1)
        assert len(world.runner.started) == attempt
        world.tick(1)
        assert len(world.runner.started) == attempt + 1
    world.worker_ends(1, "ValueError: no")
    job = world.job(running)
    assert job.state is JobState.FAILED
    assert (
        job.error == "the worker exited with code 1: ValueError: no; gave up after 4 crashes without a step in between"
    )
    world.tick(3600)
    assert len(world.runner.started) == MAX_ATTEMPTS


def test_a_step_between_crashes_makes_the_next_one_the_first(world: SchedulerWorld, running: str) -> None:
    for _ in range(2 * MAX_ATTEMPTS):
        world.step(running)
        world.worker_ends()
        assert world.job(running).attempts == 1
        world.tick(RETRY_SECONDS)


@pytest.mark.parametrize(("step", "attempts"), [(True, 1), (False, 2)])
def test_a_pause_is_no_crash(world: SchedulerWorld, running: str, step: bool, attempts: int) -> None:
    """Nor does it take one off, unless a step was made."""
    world.worker_ends()
    world.tick(RETRY_SECONDS)
    if step:
        world.step(running)
    world.unplug()
    world.plug_in(world.settings.gate.minimum_pause_seconds)
    world.worker_ends()
    assert world.job(running).attempts == attempts


@pytest.mark.parametrize("after", ["a pause", "a crash"])
def test_a_clock_that_was_set_back_does_not_prolong_the_wait(world: SchedulerWorld, running: str, after: str) -> None:
    if after == "a pause":
        world.unplug()
    else:
        world.worker_ends()
    assert world.runner.job_id is None
    world.plug_in(-86_400)
    assert world.runner.started == [running, running]


class NoProcessLeft(FakeRunner):
    """A machine that starts no more processes."""

    def start(self, job_id: str, start: int, *, seconds: float, immediate: bool = False) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")


def test_a_worker_that_cannot_be_started_is_no_crash(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request()
    world.scheduler = world.scheduler_with(NoProcessLeft())
    world.tick()
    job = world.job(job_id)
    assert (job.state, job.attempts) == (JobState.PAUSED, 0)
    assert job.reasons[0].startswith("the worker could not be started: [Errno 11] Resource temporarily unavailable")
    for _ in range(MAX_ATTEMPTS):
        world.tick(600)
    assert world.job(job_id).state is JobState.PAUSED


def test_a_new_daemon_goes_on_where_a_dead_one_was(world: SchedulerWorld, running: str) -> None:
    ended = world.request()
    world.store.jobs.cancel(ended, message="test", now=world.clock.now)
    for job_id in (running, ended):
        world.folder.start(job_id).mkdir(parents=True)
    world.restart()
    assert (world.job(running).state, world.job(running).reasons) == (JobState.PAUSED, ["the daemon was restarted"])
    assert [left.name for left in world.folder.starts.iterdir()] == [running]
    world.tick()
    assert world.runner.started == [running]


def test_cancelling_kills_the_worker_and_clears_up(world: SchedulerWorld, running: str) -> None:
    world.folder.start(running).mkdir(parents=True)
    job = world.scheduler.cancel(running, world.clock.now)
    assert (job.state, world.runner.killed) == (JobState.CANCELLED, [running])
    assert not world.folder.start(running).exists()
    world.tick()
    assert world.runner.started == [running]


def test_closing_pauses_the_running_job(world: SchedulerWorld, running: str) -> None:
    world.scheduler.close(world.clock.now)
    world.scheduler.close(world.clock.now)
    assert world.runner.killed == [running]
    assert (world.job(running).state, world.job(running).reasons) == (JobState.PAUSED, ["the daemon was stopped"])


def test_a_job_that_ends_just_before_the_close_has_ended(world: SchedulerWorld, running: str) -> None:
    world.succeed(running)
    world.scheduler.close(world.clock.now)
    assert (world.job(running).state, world.runner.pid) == (JobState.SUCCEEDED, None)


def test_a_tick_is_due_at_a_retry(world: SchedulerWorld, running: str) -> None:
    world.runner.ends(1)
    retry_at = world.tick() + timedelta(seconds=RETRY_SECONDS)
    assert min(world.scheduler.due) == retry_at == world.job(running).not_before
    world.tick(RETRY_SECONDS)
    assert world.runner.started == [running, running], "and at that time it is made"
    assert retry_at not in world.scheduler.due


def test_a_tick_is_due_at_a_snoozes_end(world: SchedulerWorld) -> None:
    until = world.clock.now + timedelta(minutes=7)
    world.store.preferences.snooze(until, world.clock.now)
    world.tick()
    assert min(world.scheduler.due) == until
    world.tick(7 * 60)
    assert until not in world.scheduler.due


def test_no_tick_is_due_that_is_over_so_that_none_follows_another_at_once(world: SchedulerWorld, running: str) -> None:
    world.store.preferences.snooze(world.clock.now - timedelta(minutes=1), world.clock.now)
    world.runner.ends(1)
    for seconds in (1, RETRY_SECONDS, 3600, 86_400):
        now = world.tick(seconds)
        assert all(at > now for at in world.scheduler.due)
