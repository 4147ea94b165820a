"""What becomes of jobs when the model in use changes."""

from pocketllm.storage.tables import JobState
from tests.support.daemon.scheduler_world import SchedulerWorld

WAITS = "large is in use; `pocketllm models use tiny` switches to its model"


def use(world: SchedulerWorld, model: str) -> None:
    world.scheduler.use(world.settings.model_copy(update={"model": model}), world.clock.now)


def test_a_worker_is_paused_and_its_job_waits_until_its_model_is_back(world: SchedulerWorld, running: str) -> None:
    world.step(running)
    use(world, "large")
    assert world.runner.killed == [running]
    assert (world.job(running).state, world.job(running).reasons) == (JobState.PAUSED, ["switched to large"])
    world.tick(600)
    assert world.job(running).reasons == [WAITS] and world.runner.started == [running]
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
