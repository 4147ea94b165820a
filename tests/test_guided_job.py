"""Guided jobs through the real worker: what they make, how they survive, what they continue."""

import json
from pathlib import Path

import pytest
import torch

from pocketllm.daemon.errors import CannotReplay
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.replaying import rebuild
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.mezo.adapters import CONFIG_NAME, Adapter, load_adapter
from pocketllm.storage.journal import BASE_STEP
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Outcome
from pocketllm.storage.texts import NewText
from tests.learning import equal
from tests.taught import sample_notes
from tests.tiny_architectures import roberta_folder
from tests.working import NOW, data_folder, finish, kill_at, notes, queue_job, start_worker

GUIDED = TrainingSettings(method="guided", steps=24, batch=4, block_tokens=16, measure_every=8)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return data_folder(tmp_path / "data", dtype="float32")


@pytest.fixture
def store(folder: DataFolder) -> Store:
    return Store.open(folder.database)


def other_notes(count: int = 60) -> list[NewText]:
    return [NewText(text=f"Paid the grocer {i} shillings; he counts slowly.", source="ledger") for i in range(count)]


def run(folder: DataFolder, store: Store, training: TrainingSettings = GUIDED, *, seed: int = 0) -> Job:
    """A job for what is stored, from what is served, as the scheduler queues it."""
    job = queue_job(store, training=training, seed=seed, steps=training.steps)
    finish(start_worker(folder, job))
    done = store.jobs.get(job.id)
    assert done.state is JobState.SUCCEEDED, done.error
    return done


def learned(folder: DataFolder, job: Job) -> Adapter:
    assert job.adapter is not None
    return load_adapter(folder.adapter(job.adapter))


def said(store: Store, job: Job, kind: str) -> str:
    return " ".join(event.message for event in store.jobs.events(job.id) if event.kind == kind)


def test_a_guided_job_learns_and_says_what_it_chose_and_why(folder: DataFolder, store: Store) -> None:
    store.texts.add([NewText(text=note, source="test") for note in sample_notes()[:40]], now=NOW)
    job = run(folder, store)
    assert (job.method, job.outcome) == ("guided", Outcome.LEARNED)
    assert "along the guide" in said(store, job, "chosen")
    adapter = learned(folder, job)
    assert "lm_head" in adapter.a and float(adapter.b["lm_head"].abs().max()) > 0
    config = json.loads((folder.adapter(str(job.adapter)) / CONFIG_NAME).read_text())
    assert "lm_head" in config["target_modules"]
    rows = store.journal.steps(job.id)
    assert [row.step for row in rows] == list(range(1, job.total_steps + 1))
    assert not folder.run(job.id).exists() and not folder.start(job.id).exists()


def test_auto_takes_the_guide_where_it_promises_more_than_chance(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(80), now=NOW)
    job = run(folder, store, GUIDED.model_copy(update={"method": "auto"}))
    assert job.method == "guided"


def test_the_same_text_and_seed_give_the_same_adapter_and_a_killed_job_ends_alike(
    folder: DataFolder, store: Store, tmp_path: Path
) -> None:
    store.texts.add(notes(80), now=NOW)
    undisturbed = learned(folder, run(folder, store))
    again = data_folder(tmp_path / "again", dtype="float32")
    other = Store.open(again.database)
    other.texts.add(notes(80), now=NOW)
    job = queue_job(other, training=GUIDED, steps=GUIDED.steps)
    for step in (0, 1, 13):
        kill_at(other, start_worker(again, job), job, step)
    finish(start_worker(again, job))
    assert equal(undisturbed, learned(again, other.jobs.get(job.id)))


def test_a_job_goes_on_from_what_is_served_and_is_compared_with_the_base_too(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(80), now=NOW)
    first = run(folder, store)
    store.texts.add(other_notes(), now=NOW)
    job = store.jobs.create(
        model="tiny",
        seed=0,
        total_steps=GUIDED.steps,
        settings=GUIDED.model_dump(mode="json"),
        requested_by=first.requested_by,
        immediate=True,
        now=NOW,
    )
    store.jobs.start(job.id, parent=first.adapter, now=NOW)
    finish(start_worker(folder, job))
    done = store.jobs.get(job.id)
    assert done.state is JobState.SUCCEEDED and done.parent == first.adapter
    before, after = learned(folder, first), learned(folder, done)
    assert all(torch.equal(before.a[path], after.a[path]) for path in before.a)
    assert store.journal.evaluation(job.id, BASE_STEP) is not None
    assert "against the base model" in said(store, done, "judged")
    assert "on old text" in said(store, done, "judged")


def test_a_guided_job_cannot_be_replayed_and_says_why(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(40), now=NOW)
    job = run(folder, store, GUIDED.model_copy(update={"steps": 2}))
    with pytest.raises(CannotReplay, match="follow from the texts"):
        rebuild(folder, store, job.id)


def test_an_adapter_of_another_method_is_no_start(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(80), now=NOW)
    mezo = run(folder, store, GUIDED.model_copy(update={"method": "mezo", "steps": 4}))
    job = queue_job(store, training=GUIDED, steps=4)
    store.jobs.set_parent(job.id, mezo.adapter)
    finish(start_worker(folder, job))
    done = store.jobs.get(job.id)
    assert done.state is JobState.SUCCEEDED and done.parent is None
    assert "another method" in said(store, done, "begun anew")


@pytest.mark.parametrize("name", ["roberta"])
def test_a_model_that_fills_in_masks_learns_by_mezo(tmp_path: Path, name: str) -> None:
    folder = data_folder(tmp_path / "data", source=roberta_folder(tmp_path / name), dtype="float32")
    store = Store.open(folder.database)
    store.texts.add(notes(40), now=NOW)
    job = run(folder, store, GUIDED.model_copy(update={"method": "auto", "steps": 2}))
    assert job.method == "mezo"
