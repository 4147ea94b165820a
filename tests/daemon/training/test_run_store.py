"""Checkpoints in real files, of states that tell steps apart."""

from pathlib import Path

import pytest
import torch

from pocketllm.daemon.training.checkpoints import Checkpoint, StoredRun, ended_early
from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.method import StepRecord
from pocketllm.storage.store import Store
from tests.support.daemon.workers import queue_job

STEPS = 10


@pytest.fixture
def run(store: Store, tmp_path: Path) -> StoredRun:
    job = queue_job(store, steps=STEPS)
    run = StoredRun(store, job.id, tmp_path / "runs" / job.id)
    for step in range(1, STEPS + 1):
        run.append(StepRecord(step=step, seed=0, scalars=(1.0,), loss=1.0, learning_rate=0.5, tokens=9), seconds=1.0)
    return run


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, state={"b": torch.full((3,), float(step)), "step": torch.tensor(float(step))})


def loaded(run: StoredRun, stopping: EarlyStopping) -> int | None:
    found = run.load(stopping)
    assert found is None or found.state["b"].tolist() == [found.step] * 3
    return None if found is None else found.step


def test_the_latest_is_gone_on_from(run: StoredRun) -> None:
    stopping = EarlyStopping(best_step=2)
    assert loaded(run, EarlyStopping()) is None
    for step in (2, 4, 6):
        run.save(checkpoint(step), stopping)
    assert loaded(run, stopping) == 6


def test_what_a_killed_worker_was_writing_is_deleted(run: StoredRun, tmp_path: Path) -> None:
    run.save(checkpoint(2), EarlyStopping())
    [folder] = (tmp_path / "runs").iterdir()
    (folder / ".pocketllm-4.safetensors-ab_c1234").mkdir()
    (folder / ".pocketllm-4.safetensors-ab_c1234" / "4.safetensors").write_bytes(b"half")
    assert loaded(run, EarlyStopping()) == 2
    assert [path.name for path in folder.iterdir()] == ["2.safetensors"]


def test_after_going_back_it_is_the_best(run: StoredRun) -> None:
    """The later ones were made at a rate that has been halved since."""
    stopping = EarlyStopping(best_step=2)
    for step in (2, 4, 6):
        run.save(checkpoint(step), stopping)
    stopping.go_back()
    run.go_back(stopping, step=6)
    assert loaded(run, stopping) == 2
    run.save(checkpoint(4), stopping)
    assert loaded(run, stopping) == 2  # the records up to 4 are not there


def test_a_best_that_the_database_does_not_name_yet_is_gone_on_from(run: StoredRun) -> None:
    """It is checked again there."""
    run.save(checkpoint(2), EarlyStopping(best_step=2))
    run.save(checkpoint(4), EarlyStopping(best_step=4))
    assert loaded(run, EarlyStopping(best_step=2)) == 4
    assert loaded(run, EarlyStopping(best_step=4)) == 4


def test_old_ones_are_cleared(run: StoredRun, tmp_path: Path) -> None:
    for step in (2, 4):
        run.save(checkpoint(step), EarlyStopping(best_step=step))
    run.save(checkpoint(6), EarlyStopping(best_step=4))
    run.save(checkpoint(8), EarlyStopping(best_step=4))
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["4.safetensors", "8.safetensors"]


def test_one_that_is_lost_is_named(run: StoredRun, tmp_path: Path) -> None:
    run.save(checkpoint(2), EarlyStopping(best_step=2))
    (file,) = (tmp_path / "runs").glob("*/*")
    file.write_bytes(b"half")
    with pytest.raises(ModelFileError, match=r" 2.safetensors cannot be read .* Request a new job\."):
        run.load(EarlyStopping(best_step=2))
    file.unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        run.load(EarlyStopping(best_step=2))


def test_going_back_says_so_in_an_event(run: StoredRun, store: Store) -> None:
    stopping = EarlyStopping(best_step=4, best_loss=1.25)
    stopping.go_back()
    run.go_back(stopping, step=8)
    stopping.end()
    run.go_back(stopping, step=6)
    told = [event.message for event in store.jobs.events(run._job_id)][-2:]
    assert told == [
        "rolled back from step 8 to step 4, which had the lowest validation loss, 1.25 nats per token; continuing "
        "at 0.5 of the learning rate",
        ended_early(stopping, 6),
    ]
