"""The scheduler over a real store, with a worker that is none and times that are passed in."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pocketllm.daemon.errors import ModelNotReady, NothingToLearn
from pocketllm.daemon.scheduling.planning import JobRequest
from pocketllm.daemon.scheduling.scheduler import MAX_ATTEMPTS, RETRY_SECONDS
from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.tables import JobState, Requester
from tests.support.house import House, house_in
from tests.support.running import FakeRunner

MISSING = "The model 'tiny' is not imported. Run `pocketllm models add`."


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path) as made:
        yield made


@pytest.fixture
def running(house: House) -> str:
    """A job that a worker is at."""
    house.add(5)
    job_id = house.request()
    house.tick()
    assert house.job(job_id).state is JobState.RUNNING
    return job_id


def test_a_request_queues_a_job_with_the_settings_of_its_time(house: House) -> None:
    house.add(5)
    job = house.scheduler.request(JobRequest(steps=7), seed=0, immediate=True, now=house.clock.now)
    assert (job.state, job.total_steps, job.seed, job.immediate) == (JobState.QUEUED, 7, 0, True)
    assert (job.model, job.requested_by) == ("tiny", Requester.OWNER)
    assert job.settings == house.settings.training.model_dump(mode="json")
    assert house.job(house.request()).total_steps == 30


def test_without_texts_or_without_a_model_a_request_is_refused(house: House) -> None:
    with pytest.raises(NothingToLearn, match="POST /texts"):
        house.request()
    house.add(20)
    house.model_problem = MISSING
    with pytest.raises(ModelNotReady, match="pocketllm models add"):
        house.request()
    house.tick()  # nor does so much text queue one
    assert house.store.jobs.open() == []


def test_a_tick_starts_a_job_and_the_next_leaves_it_alone(house: House) -> None:
    house.add(5)
    job_id = house.request()
    assert house.runner.started == []
    house.tick()
    house.tick()
    assert house.runner.started == [job_id]
    assert (house.scheduler.running_job, house.scheduler.worker_pid) == (job_id, house.runner.pid)
    assert (house.job(job_id).state, house.job(job_id).texts) == (JobState.RUNNING, 1)


def test_with_nothing_to_do_the_gate_is_looked_at_all_the_same(house: House) -> None:
    house.power.value = False
    house.tick()
    assert [reading.name for reading in house.scheduler.readings] == ["power", "battery", "memory"]
    assert house.scheduler.verdict.reasons == ["not on external power"]


def test_threads_that_tick_at_once_start_a_job_once(house: House) -> None:
    house.add(5)
    job_id = house.request()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(house.scheduler.tick, [house.clock.now] * 8))
    assert house.runner.started == [job_id]


def test_when_power_goes_the_worker_is_killed_and_the_job_says_why(house: House, running: str) -> None:
    house.power.value, house.battery.value = False, 20.0
    house.tick()
    assert house.runner.killed == [running]
    assert (house.job(running).state, house.scheduler.running_job) == (JobState.PAUSED, None)
    assert house.job(running).reasons == ["not on external power", "battery 20 % is under 30 %"]


def test_a_paused_job_goes_on_only_after_the_minimum_pause(house: House, running: str) -> None:
    house.power.value = False
    house.tick()
    house.power.value = True
    house.tick(1)
    assert house.job(running).reasons == ["paused 1 s ago; 59 s to wait"]
    house.tick(58)
    assert house.runner.started == [running]
    house.tick(1)
    assert house.runner.started == [running, running]
    assert house.job(running).reasons == []


def test_while_a_job_waits_its_reasons_are_kept_up_to_date(house: House) -> None:
    house.add(5)
    job_id = house.request()
    house.power.value = False
    house.tick()
    assert house.job(job_id).reasons == ["not on external power"]
    house.power.value, house.memory.value = True, 1e6
    house.tick()
    assert house.job(job_id).reasons == ["1 MB of memory available, under 700 MB"]
    assert [event.kind for event in house.store.jobs.events(job_id)] == ["queued"]


def test_without_its_model_a_job_waits_and_says_what_to_do(house: House) -> None:
    house.add(5)
    job_id = house.request()
    house.model_problem = MISSING
    missing_since = house.tick()
    house.tick()
    assert (house.runner.started, house.job(job_id).reasons) == ([], [MISSING])
    [blocker] = house.scheduler.verdict.blockers
    assert (blocker.name, blocker.since) == ("model", missing_since)
    house.model_problem = None
    house.tick()
    assert house.runner.started == [job_id]


def test_the_owners_now_goes_before_older_jobs_and_without_the_charger(house: House) -> None:
    house.add(5)
    older = house.request()
    house.clock.advance(10)
    now = house.request(immediate=True)
    house.power.value = False
    house.tick()
    assert house.runner.started == [now]
    assert house.job(older).state is JobState.QUEUED


def test_the_owners_now_does_not_interrupt_the_job_that_runs_and_says_that_it_waits(house: House, running: str) -> None:
    now = house.request(immediate=True)
    house.tick()
    assert (house.runner.killed, house.runner.job_id) == ([], running)
    assert (house.job(running).reasons, house.job(now).reasons) == ([], [f"waits for {running}"])
    house.succeed(running)
    house.tick()
    assert house.runner.started == [running, now]


def test_a_job_starts_from_what_is_served_when_it_first_starts(house: House, running: str) -> None:
    second = house.request()
    house.succeed(running)
    house.tick()
    assert house.job(second).parent == f"of-{running}"


def test_enough_new_words_queue_one_job(house: House) -> None:
    house.add(19)
    house.tick()
    assert house.store.jobs.page(after=None, limit=9) == []
    house.add(1, "more")
    house.tick()
    job = house.only_job()
    assert (job.requested_by, job.immediate, job.state) == (Requester.THRESHOLD, False, JobState.RUNNING)
    house.add(20, "later")
    house.tick()
    assert house.only_job().id == job.id
    house.succeed(job.id)
    house.tick()
    assert [job.texts for job in house.store.jobs.page(after=None, limit=9)] == [3, 2]


def test_a_job_of_the_threshold_is_withdrawn_when_another_has_learned_its_texts(house: House) -> None:
    house.add(20)
    house.power.value = False
    house.tick()
    waiting = house.only_job().id
    now = house.request(immediate=True)
    house.tick()
    house.power.value = True
    house.succeed(now)
    house.tick()
    assert (house.job(waiting).state, house.runner.started) == (JobState.CANCELLED, [now])
    assert "learned its texts" in house.store.jobs.events(waiting)[-1].message


@pytest.mark.parametrize("end", ["withdrawn", "failed"])
def test_what_a_job_was_given_up_over_is_not_tried_again_by_itself(house: House, end: str) -> None:
    house.add(20)
    house.tick()
    job_id = house.only_job().id
    if end == "withdrawn":
        house.scheduler.cancel(job_id, house.clock.now)
    else:
        house.store.jobs.fail(job_id, error="too little memory", now=house.clock.now)
        house.runner.ends(0)
    for _ in range(3):
        house.tick()
    assert house.only_job().id == job_id

    house.add(19, "other")
    house.tick()
    assert house.only_job().id == job_id
    house.add(1, "enough")
    house.tick()
    assert house.store.jobs.page(after=None, limit=1)[0].texts == 3


def test_a_crash_is_tried_again_later_and_later_and_then_given_up(house: House, running: str) -> None:
    for attempt in range(1, MAX_ATTEMPTS):
        house.runner.ends(-9)
        house.tick()
        wait = RETRY_SECONDS * 2 ** (attempt - 1)
        job = house.job(running)
        assert (job.state, job.attempts) == (JobState.PAUSED, attempt)
        assert job.reasons[0].startswith("the worker was ended by signal 9; next try at ")
        house.tick(wait - 1)
        assert len(house.runner.started) == attempt
        house.tick(1)
        assert len(house.runner.started) == attempt + 1
    house.runner.ends(1, "ValueError: no")
    house.tick()
    job = house.job(running)
    assert job.state is JobState.FAILED
    assert (
        job.error == "the worker ended with code 1: ValueError: no; given up after 4 times without a step between them"
    )
    house.tick(3600)
    assert len(house.runner.started) == MAX_ATTEMPTS


def test_a_step_between_crashes_makes_the_next_one_the_first(house: House, running: str) -> None:
    for _ in range(2 * MAX_ATTEMPTS):
        house.step(running)
        house.runner.ends(-9)
        house.tick()
        assert house.job(running).attempts == 1
        house.tick(RETRY_SECONDS)


@pytest.mark.parametrize(("step", "attempts"), [(True, 1), (False, 2)])
def test_a_pause_is_no_crash_and_takes_none_off_unless_a_step_was_made(
    house: House, running: str, step: bool, attempts: int
) -> None:
    house.runner.ends(-9)
    house.tick()
    house.tick(RETRY_SECONDS)
    if step:
        house.step(running)
    house.power.value = False
    house.tick()
    house.power.value = True
    house.tick(house.settings.gate.minimum_pause_seconds)
    house.runner.ends(-9)
    house.tick()
    assert house.job(running).attempts == attempts


@pytest.mark.parametrize("after", ["a pause", "a crash"])
def test_a_clock_that_was_set_back_does_not_prolong_the_wait(house: House, running: str, after: str) -> None:
    if after == "a pause":
        house.power.value = False
    else:
        house.runner.ends(-9)
    house.tick()
    assert house.runner.job_id is None
    house.power.value = True
    house.tick(-86_400)
    assert house.runner.started == [running, running]


class NoProcessLeft(FakeRunner):
    """A machine that starts no more processes."""

    def start(self, job_id: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")


def test_a_worker_that_cannot_be_started_counts_as_a_crash(house: House) -> None:
    house.add(5)
    job_id = house.request()
    scheduler = house.scheduler_with(NoProcessLeft())
    scheduler.tick(house.clock.now)
    job = house.job(job_id)
    assert (job.state, job.attempts) == (JobState.PAUSED, 1)
    assert job.reasons[0].startswith("the worker could not be started: [Errno 11] Resource temporarily unavailable")
    for _ in range(MAX_ATTEMPTS - 1):
        scheduler.tick(house.clock.advance(600))
    assert house.job(job_id).state is JobState.FAILED


def test_a_new_daemon_goes_on_where_a_dead_one_was(house: House, running: str) -> None:
    house.folder.start(running).mkdir(parents=True)
    house.folder.start("job-of-the-past").mkdir()
    runner = FakeRunner()
    scheduler = house.scheduler_with(runner)
    scheduler.recover(house.clock.now)
    assert (house.job(running).state, house.job(running).reasons) == (JobState.PAUSED, ["the daemon was restarted"])
    assert [left.name for left in house.folder.starts.iterdir()] == [running]
    scheduler.tick(house.clock.advance(2))
    assert runner.started == [running]


def test_cancelling_kills_the_worker_and_clears_up(house: House, running: str) -> None:
    house.folder.start(running).mkdir(parents=True)
    job = house.scheduler.cancel(running, house.clock.now)
    assert (job.state, house.runner.killed) == (JobState.CANCELLED, [running])
    assert not house.folder.start(running).exists()
    house.tick()
    assert house.runner.started == [running]


def test_cancelling_a_waiting_job_leaves_the_running_one_alone(house: House, running: str) -> None:
    waiting = house.request()
    house.scheduler.cancel(waiting, house.clock.now)
    assert (house.runner.killed, house.runner.job_id) == ([], running)


def test_only_an_open_job_can_be_cancelled(house: House, running: str) -> None:
    house.scheduler.cancel(running, house.clock.now)
    with pytest.raises(WrongState, match="is cancelled"):
        house.scheduler.cancel(running, house.clock.now)
    with pytest.raises(NotFound, match="job-none"):
        house.scheduler.cancel("job-none", house.clock.now)


def test_closing_pauses_the_running_job(house: House, running: str) -> None:
    house.scheduler.close(house.clock.now)
    house.scheduler.close(house.clock.now)
    assert house.runner.killed == [running]
    assert (house.job(running).state, house.job(running).reasons) == (JobState.PAUSED, ["the daemon has stopped"])


def test_a_job_that_ends_just_before_the_close_has_ended(house: House, running: str) -> None:
    house.succeed(running)
    house.scheduler.close(house.clock.now)
    assert (house.job(running).state, house.runner.pid) == (JobState.SUCCEEDED, None)
