"""A job that its owner pauses waits until they resume it, whatever else happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.daemon.scheduling.scheduler import PAUSED_BY_OWNER
from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.tables import JobState
from tests.support.house import House, house_in
from tests.support.running import FakeRunner, assert_problem, rehearsal
from tests.support.tiny_models import tiny_model_folder


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path) as made:
        yield made


def test_a_running_job_is_killed_and_waits_until_it_is_resumed(house: House) -> None:
    house.add(5)
    job_id = house.request(immediate=True)
    house.tick()
    house.step(job_id)
    held = house.scheduler.pause(job_id, house.clock.now)
    assert house.runner.killed == [job_id]
    assert (held.state, held.paused_by_owner, held.reasons) == (JobState.PAUSED, True, [PAUSED_BY_OWNER])
    house.tick(1)
    assert house.runner.started == [job_id] and house.job(job_id).reasons == [PAUSED_BY_OWNER]
    assert house.scheduler.resume(job_id, house.clock.now).reasons == []
    house.tick(0.1)
    assert house.runner.started == [job_id, job_id]
    kinds = [event.kind for event in house.store.jobs.events(job_id)]
    assert kinds == ["queued", "started", "compared with", "paused", "paused by owner", "resumed by owner", "resumed"]


def test_a_queued_job_can_be_held_and_the_next_goes_first(house: House) -> None:
    house.add(5)
    first, second = house.request(), house.request()
    house.scheduler.pause(first, house.clock.now)
    house.tick()
    assert house.runner.started == [second]
    house.succeed(second)
    house.tick()
    house.scheduler.resume(first, house.clock.now)
    house.tick(61)
    assert house.runner.started == [second, first]


def test_the_owners_pause_holds_no_other_job_back(house: House) -> None:
    house.add(5)
    first = house.request()
    house.tick()
    second = house.request()
    house.scheduler.pause(first, house.clock.now)
    house.tick(0.1)
    assert house.runner.started == [first, second]


def test_no_other_is_queued_by_itself_while_one_is_held(house: House) -> None:
    """The owner has said 'not now' to these texts."""
    house.add(50)
    house.tick()
    [job_id] = house.runner.started
    house.scheduler.pause(job_id, house.clock.now)
    house.add(50, about="other")
    house.tick(3600)
    assert house.only_job().id == job_id


def test_a_new_daemon_still_knows(house: House) -> None:
    house.add(5)
    job_id = house.request()
    house.tick()
    house.scheduler.pause(job_id, house.clock.now)
    runner = FakeRunner()
    scheduler = house.scheduler_with(runner)
    scheduler.recover(house.clock.now)
    scheduler.tick(house.clock.advance(3600))
    assert runner.started == [] and house.job(job_id).paused_by_owner


def test_what_cannot_be_held_or_released(house: House) -> None:
    house.add(5)
    job_id = house.request()
    with pytest.raises(NotFound):
        house.scheduler.pause("job-0", house.clock.now)
    with pytest.raises(WrongState, match="was not paused by its owner"):
        house.scheduler.resume(job_id, house.clock.now)
    house.scheduler.pause(job_id, house.clock.now)
    with pytest.raises(WrongState, match="paused already"):
        house.scheduler.pause(job_id, house.clock.now)
    house.scheduler.cancel(job_id, house.clock.now)
    for wrong in (house.scheduler.pause, house.scheduler.resume):
        with pytest.raises(WrongState):
            wrong(job_id, house.clock.now)


def test_over_http(tmp_path: Path) -> None:
    with rehearsal(tmp_path / "data") as api:
        tiny_model_folder(api.services.folder.models)
        api.add("word " * 50)
        job = api.post("/jobs", json={}).json()["id"]
        api.tick()
        held = api.post(f"/jobs/{job}/pause").json()
        assert (held["state"], held["paused_by_owner"], held["reasons"]) == ("paused", True, [PAUSED_BY_OWNER])
        assert_problem(api.post(f"/jobs/{job}/pause"), 409, "wrong_state")
        assert api.post(f"/jobs/{job}/resume").json()["paused_by_owner"] is False
        assert_problem(api.post("/jobs/job-0/resume"), 404, "not_found")
        assert_problem(api.post(f"/jobs/{job}/resume", token=None), 401, "missing_token")
