"""Learning and generating at once: both where there is room for both, else learning waits."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.daemon.process_memory import anonymous_bytes
from pocketllm.daemon.scheduling.admission import IMMEDIATE_KEEP_ALIVE, beside_generator
from tests.support.daemon.in_process_app import NOON
from tests.support.daemon.real_daemon import Daemon, eventually, running
from tests.support.daemon.scheduler_world import scheduler_world
from tests.support.daemon.workers import new_job
from tests.support.models.tiny_models import tiny_model_folder

MB = 10**6


def test_who_fits() -> None:
    rows: dict[str, tuple[int, int | None, bool]] = {
        "no generator": (0, 2000 * MB, True),
        "both fit": (300 * MB, 700 * MB, True),
        "a byte too much": (300 * MB, 700 * MB + 1, False),
        "a job that nobody could plan": (300 * MB, None, True),
    }
    for row, (generator, predicted, fits) in rows.items():
        found = beside_generator(new_job(predicted_bytes=predicted), generator, 1000 * MB, NOON)
        assert (found is None) == fits, row
        if found:
            assert found.name == "generator" and found.threshold == 1000 * MB
            assert "use 300 MB, and the job needs 700 MB more" in found.message
    assert beside_generator(None, 5, 1, NOON) is None


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One that may hold a worker or a generator, of a tiny model, but not both."""
    folder = tmp_path / "data"
    folder.mkdir()
    tiny_model_folder(folder / "models")
    with running(
        folder,
        MODEL="tiny",
        TOTAL_MEMORY_BYTES=str(300 * MB),
        KEEP_ALIVE_SECONDS="0.5",
        GATE__MINIMUM_PAUSE_SECONDS="0",
        TRAINING__NEW_WORDS="100000",
        TRAINING__METHOD="mezo",
        TRAINING__BATCH="2",
        TRAINING__BLOCK_TOKENS="16",
    ) as made:
        yield made


@pytest.mark.slow
def test_learning_makes_room_for_an_answer_and_goes_on(daemon: Daemon) -> None:
    """The worker is gone before the generator is there, says why, and comes back when that is unloaded."""
    notes = [{"text": f"Wind west, glass rising. Mug of tea number {i}.", "source": "test"} for i in range(30)]
    daemon.client.post("/texts", json=notes)
    job_id = daemon.start_job(steps=3000)
    eventually(lambda: daemon.job(job_id)["step"] > 0, "the job is under way")
    assert daemon.client.post("/generate", json={"prompt": "Wind", "max_tokens": 2}).status_code == 200
    waiting = daemon.job(job_id)
    assert waiting["state"] == "paused" and "generator and daemon use" in waiting["reasons"][0]
    assert daemon.status()["worker"]["running"] is False
    blockers = {blocker["name"]: blocker for blocker in daemon.status()["training"]["blockers"]}
    assert blockers["generator"]["threshold"] == 300 * MB
    held = anonymous_bytes(daemon.status()["generator"]["pid"] or os.getpid())
    assert held and blockers["generator"]["value"] > 300 * MB
    eventually(lambda: daemon.job(job_id)["state"] == "running", "the job goes on")
    assert daemon.status()["generator"]["running"] is False
    daemon.client.post(f"/jobs/{job_id}/cancel")


def test_a_job_that_the_owner_waits_for_does_not_wait_for_the_keep_alive_time(tmp_path: Path) -> None:
    with scheduler_world(tmp_path) as world:
        world.add(30)
        world.generator_bytes = 10**12
        wanted = []
        for change in ("of a night, for which the keep-alive time ends first", "of the owner", "unloaded"):
            if change == "of the owner":
                world.request(immediate=True)
            elif change == "unloaded":
                assert f"nobody has used it for {IMMEDIATE_KEEP_ALIVE:g} s" in world.scheduler.verdict.reasons[0]
                world.generator_bytes = 0
            world.tick()
            wanted.append(world.scheduler.wants_generators_memory)
        assert (wanted, len(world.runner.started)) == ([False, True, False], 1)
