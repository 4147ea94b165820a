"""What becomes of a worker's end: when nothing can be stored, when it hangs, when its successor is there."""

from collections.abc import Callable

import pytest

from pocketllm.daemon.paths import adapter_id_of
from pocketllm.daemon.scheduling.attempts import RETRY_SECONDS, STALL_SECONDS
from pocketllm.daemon.scheduling.planning import JobRequest
from pocketllm.storage.errors import Superseded
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Step
from tests.support.daemon.scheduler_world import SchedulerWorld
from tests.support.faults import no_room


def test_a_crash_that_cannot_be_stored_is_stored_when_there_is_room(world: SchedulerWorld, running: str) -> None:
    world.runner.ends(1, "boom")
    with no_room():
        world.tick()
        world.tick()
    assert (world.job(running).state, world.scheduler.running_job) == (JobState.RUNNING, None)
    [blocker] = world.scheduler.verdict.blockers
    assert blocker.name == "storage" and str(world.folder.database) in blocker.message
    world.tick()
    assert (world.job(running).state, world.job(running).attempts) == (JobState.PAUSED, 1)
    assert [blocker.name for blocker in world.scheduler.verdict.blockers] == ["held back"]
    world.tick(RETRY_SECONDS)
    assert world.runner.started == [running, running]


def test_a_pause_comes_at_once_and_is_stored_when_there_is_room(world: SchedulerWorld, running: str) -> None:
    world.power.value = False
    with no_room():
        world.tick()
        assert world.runner.killed == [running]
    world.tick()
    assert (world.job(running).state, world.job(running).attempts) == (JobState.PAUSED, 0)
    assert world.job(running).reasons == ["not on external power"]


def test_while_nothing_can_be_stored_nothing_runs(world: SchedulerWorld, running: str) -> None:
    world.add(5, "more")
    behind = world.request()  # its reason is to be stored, which fails
    with no_room():
        world.tick()
    assert world.runner.killed == [running]
    world.tick()
    world.tick()
    assert world.runner.started == [running, running]
    assert world.job(behind).reasons == [f"waiting for {running}"]


def test_a_job_that_is_running_without_a_worker_is_tried_again(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request()
    world.store.jobs.start(job_id, now=world.clock.now)
    world.tick()
    assert (world.job(job_id).state, world.job(job_id).attempts) == (JobState.PAUSED, 0)
    assert world.job(job_id).reasons[0].startswith("its worker is gone; next try at ")


def test_a_job_that_cannot_be_run_fails_and_the_next_gets_its_turn(world: SchedulerWorld) -> None:
    world.add(5)
    broken = world.scheduler.queue.request(
        JobRequest(), seed=None, immediate=False, now=world.clock.now, tuning={}, start_from="gone"
    ).id
    world.tick()
    assert world.job(broken).state is JobState.FAILED and "no adapter 'gone'" in str(world.job(broken).error)
    good = world.request()
    world.tick()
    assert world.runner.started == [good]


def test_a_worker_that_hangs_is_killed(world: SchedulerWorld, running: str) -> None:
    world.runner.cpu_seconds = 7.0
    world.tick()
    for _ in range(int(STALL_SECONDS / 10) - 1):
        world.tick(10)
    assert world.runner.killed == []
    world.tick(10)
    assert world.runner.killed == [running]
    assert (world.job(running).state, world.job(running).attempts) == (JobState.PAUSED, 1)
    assert world.job(running).reasons[0].startswith("the worker hung for 120 s; next try at ")


def test_a_worker_that_computes_or_slept_with_the_device_does_not_hang(world: SchedulerWorld, running: str) -> None:
    for seconds in range(100):
        world.runner.cpu_seconds = float(seconds)
        world.tick(10)
    world.tick(8 * 3600)  # the device slept
    assert world.runner.killed == []


def test_what_ended_jobs_and_dead_workers_left_is_deleted(world: SchedulerWorld, running: str) -> None:
    waiting = world.request()
    kept = [world.folder.start(waiting), world.folder.adapter(f"of-{running}")]
    folder = world.folder
    adapter = adapter_id_of(running)
    left = [folder.start(running), folder.start(f".pocketllm-{running}-ab_c1234"), folder.run(running)]
    left += [folder.adapter(adapter), folder.adapter(f".pocketllm-{adapter}-ab_c1234")]
    for path in kept + left:
        path.mkdir(parents=True)
    world.finish(running)
    assert [path.exists() for path in kept] == [True] * len(kept)
    assert [path.exists() for path in left] == [False] * len(left)


def test_the_files_of_a_running_job_stay_while_another_is_cancelled(world: SchedulerWorld, running: str) -> None:
    half = world.folder.adapter(f".pocketllm-{running}-ab_c1234")
    half.mkdir(parents=True)
    world.scheduler.cancel(world.request(), world.clock.now)
    assert half.exists() and (world.runner.killed, world.runner.job_id) == ([], running)


def step_of(job: Job) -> Step:
    return Step(job_id=job.id, step=1, seed=1, scalars=[0.1], loss=3, learning_rate=0.1, tokens=9, seconds=1)


@pytest.mark.parametrize("what", ["paused", "started again", "cancelled"])
def test_a_former_workers_writes_are_refused(world: SchedulerWorld, running: str, what: str) -> None:
    job = world.job(running)
    late = Store.open_for_worker(world.folder.database, running, job.starts)
    if what == "cancelled":
        world.store.jobs.cancel(running, message="test", now=world.clock.now)
    else:
        world.store.jobs.pause(running, reasons=["test"], now=world.clock.now)
    if what == "started again":
        world.store.jobs.start(running, now=world.clock.now)
    writes: list[Callable[[], object]] = [
        lambda: late.step_log.append(step_of(job)),
        lambda: late.jobs.fail(running, error="late", now=world.clock.now),
        lambda: late.jobs.set_peak_memory(running, 5),
    ]
    for write in writes:
        with pytest.raises(Superseded):
            write()
    late.close()
    assert world.store.step_log.last_step(running) == 0


def test_a_worker_may_write_to_the_job_that_it_has_ended(world: SchedulerWorld, running: str) -> None:
    worker = Store.open_for_worker(world.folder.database, running, world.job(running).starts)
    worker.step_log.append(step_of(world.job(running)))
    worker.jobs.fail(running, error="too little text", now=world.clock.now)
    worker.jobs.set_peak_memory(running, 5)
    worker.close()
    assert world.job(running).peak_memory_bytes == 5
