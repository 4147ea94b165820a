"""What becomes of jobs when the model in use changes."""

from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.tables import JobState
from tests.support.daemon.in_process_app import FakeRunner
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


def test_the_same_text_is_learned_by_each_model(world: SchedulerWorld) -> None:
    world.add(30)
    world.tick()
    [first] = world.runner.started
    world.succeed(first)
    world.tick()
    assert world.store.jobs.open() == []
    use(world, "large")
    world.tick()
    [job] = world.store.jobs.open()
    assert (job.model, job.state) == ("large", JobState.RUNNING)
    use(world, "tiny")
    world.tick()
    serving = world.store.adapters.serving("tiny")
    assert serving is not None and serving.id == f"of-{first}" and world.scheduler.running_job is None
    assert world.scheduler.verdict.allowed


def test_a_job_that_its_owner_has_paused_says_so_all_the_same(world: SchedulerWorld, running: str) -> None:
    world.scheduler.pause(running, world.clock.now)
    use(world, "large")
    world.tick()
    assert world.job(running).reasons == ["paused by the owner"]


def test_a_failed_job_of_another_model_holds_nothing_back(world: SchedulerWorld) -> None:
    world.add(30)
    world.tick()
    [failed] = world.runner.started
    world.store.jobs.fail(failed, error="bang", now=world.clock.now)
    world.runner.ends(1)
    world.tick()
    assert failed in world.scheduler.verdict.reasons[0]
    use(world, "large")
    world.tick()
    assert len(world.runner.started) == 2


def test_after_a_deletion_the_model_in_use_learns_what_is_left(world: SchedulerWorld) -> None:
    secret, _ = world.store.texts.add(
        [NewText(text=f"{name} " * 30, source="test") for name in ("secret", "other")], now=world.clock.now
    ).ids
    for model in ("tiny", "large"):
        use(world, model)
        world.tick()
        world.succeed(world.runner.started[-1])
        world.tick()
    receipt = world.scheduler.forget(
        lambda: world.store.deletions.texts([secret], now=world.clock.now), world.clock.now
    )
    assert len(receipt.adapters) == 2
    [job] = world.store.jobs.open()
    assert (job.id, job.model) == (receipt.job, "large")
    use(world, "tiny")
    world.tick()
    assert [job.model for job in world.store.jobs.open()] == ["tiny", "large"]


def test_a_daemon_that_starts_with_another_model_in_its_settings_has_switched(world: SchedulerWorld) -> None:
    world.scheduler.recover(world.clock.now)
    world.add(30)
    world.tick()
    world.succeed(world.runner.started[0])
    world.tick()
    world.settings = world.settings.model_copy(update={"model": "large"})
    runner = FakeRunner()
    scheduler = world.scheduler_with(runner)
    scheduler.recover(world.clock.now)
    scheduler.tick(world.clock.advance(2))
    assert len(runner.started) == 1
