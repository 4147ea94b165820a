"""A job waits while its owner has paused it, or uses another model, whatever else happens."""

import pytest

from pocketllm.daemon.scheduling.scheduler import PAUSED_BY_OWNER
from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.tables import JobState
from tests.support.daemon.scheduler_world import SchedulerWorld

ANOTHER = "large is in use; `pocketllm models use tiny` switches to its model"


def test_a_running_job_is_killed_and_waits_until_it_is_resumed(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request(immediate=True)
    world.tick()
    world.step(job_id)
    held = world.scheduler.pause(job_id, world.clock.now)
    assert world.runner.killed == [job_id]
    assert (held.state, held.paused_by_owner, held.reasons) == (JobState.PAUSED, True, [PAUSED_BY_OWNER])
    world.tick(1)
    assert world.runner.started == [job_id] and world.job(job_id).reasons == [PAUSED_BY_OWNER]
    assert world.scheduler.resume(job_id, world.clock.now).reasons == ["resumed; the conditions are checked next"]
    world.tick(0.1)
    assert world.runner.started == [job_id, job_id]
    kinds = [event.kind for event in world.store.jobs.events(job_id)]
    assert kinds == ["queued", "started", "compared with", "paused", "paused by owner", "resumed by owner", "resumed"]


def test_a_queued_job_can_be_held_and_the_next_goes_first(world: SchedulerWorld) -> None:
    world.add(5)
    first, second = world.request(), world.request()
    world.scheduler.pause(first, world.clock.now)
    world.tick()
    assert world.runner.started == [second]
    world.finish(second)
    world.scheduler.resume(first, world.clock.now)
    world.tick(61)
    assert world.runner.started == [second, first]


def test_no_other_is_queued_by_itself_while_one_is_held(world: SchedulerWorld) -> None:
    """The owner has said 'not now' to these texts."""
    job_id = world.request_by_words()
    world.scheduler.pause(job_id, world.clock.now)
    world.add(50, about="other")
    world.tick(3600)
    assert world.only_job().id == job_id


def test_a_new_daemon_still_knows(world: SchedulerWorld, running: str) -> None:
    world.scheduler.pause(running, world.clock.now)
    world.restart()
    world.tick(3600)
    assert world.runner.started == [] and world.job(running).paused_by_owner


def test_what_cannot_be_held_or_released(world: SchedulerWorld) -> None:
    world.add(5)
    job_id = world.request()
    with pytest.raises(NotFound):
        world.scheduler.pause("job-none", world.clock.now)
    with pytest.raises(WrongState, match="was not paused by the owner"):
        world.scheduler.resume(job_id, world.clock.now)
    world.scheduler.pause(job_id, world.clock.now)
    with pytest.raises(WrongState, match="already paused"):
        world.scheduler.pause(job_id, world.clock.now)
    world.scheduler.cancel(job_id, world.clock.now)
    for wrong in (world.scheduler.pause, world.scheduler.resume):
        with pytest.raises(WrongState):
            wrong(job_id, world.clock.now)


def use(world: SchedulerWorld, model: str) -> None:
    world.scheduler.use(world.settings.model_copy(update={"model": model}), world.clock.now)


def test_a_worker_is_paused_and_its_job_waits_until_its_model_is_back(world: SchedulerWorld, running: str) -> None:
    world.step(running)
    use(world, "large")
    assert world.runner.killed == [running]
    assert (world.job(running).state, world.job(running).reasons) == (JobState.PAUSED, ["switched to large"])
    world.tick(600)
    assert world.job(running).reasons == [ANOTHER] and world.runner.started == [running]
    other = world.request(seed=None)  # does not go on with it
    world.tick()
    assert (world.job(other).model, world.runner.started) == ("large", [running, other])
    use(world, "tiny")
    world.tick()
    assert world.runner.started == [running, other, running]
    assert "models use large" in world.job(other).reasons[0]


def test_a_job_that_its_owner_has_paused_says_so_all_the_same(world: SchedulerWorld, running: str) -> None:
    world.scheduler.pause(running, world.clock.now)
    use(world, "large")
    world.tick()
    assert world.job(running).reasons == ["paused by the owner"]


def test_a_failed_job_of_another_model_holds_nothing_back(world: SchedulerWorld) -> None:
    failed = world.request_by_words()
    world.store.jobs.fail(failed, error="bang", now=world.clock.now)
    world.worker_ends()
    assert failed in world.scheduler.verdict.reasons[0]
    use(world, "large")
    world.tick()
    assert len(world.runner.started) == 2


def test_a_daemon_that_starts_with_another_model_in_its_settings_has_switched(world: SchedulerWorld) -> None:
    world.scheduler.recover(world.clock.now)
    world.finish(world.request_by_words())
    world.settings = world.settings.model_copy(update={"model": "large"})
    world.restart()
    world.tick()
    assert len(world.runner.started) == 1
