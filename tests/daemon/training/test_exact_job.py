"""Jobs by exact gradients: what they make, how they survive, what they continue."""

import shutil
from pathlib import Path

import pytest
import torch

from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.storage.repositories.step_log import BASE_STEP
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Outcome
from tests.support.daemon.workers import (
    NOW,
    changed,
    data_folder,
    delete_text,
    finish,
    kill_at,
    kill_when,
    notes,
    queue_job,
    run_here,
    start_worker,
)
from tests.support.models.learning import equal
from tests.support.models.taught_model import sample_notes
from tests.support.models.tiny_architectures import architecture_folder
from tests.support.models.tiny_models import tiny_model_folder

#: Checks of the validation loss, and so checkpoints, are after every tenth step. No samples, which take long to draw.
EXACT = TrainingSettings(
    method="exact", steps=24, batch=8, block_tokens=16, measure_every=8, memory_bytes=200_000_000, rehearsal=0.0
)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return data_folder(tmp_path / "data", dtype="float32")


def run(folder: DataFolder, store: Store, training: TrainingSettings = EXACT, *, parent: str | None = None) -> Job:
    """A job for what is stored, to its end."""
    return run_here(folder, store, queue_job(store, training=training, parent=parent))


def learned(folder: DataFolder, job: Job) -> Adapter:
    assert job.adapter is not None
    return load_adapter(folder.adapter(job.adapter))


def said(store: Store, job: Job, kind: str) -> str:
    return " ".join(event.message for event in store.jobs.events(job.id) if event.kind == kind)


def test_it_learns_and_says_what_was_chosen_and_what_the_other_method_would_take(
    folder: DataFolder, store: Store
) -> None:
    store.texts.add([NewText(text=note, source="test") for note in sample_notes()[:40]], now=NOW)
    job = run(folder, store, changed(EXACT, method="auto", rehearsal=0.125))
    assert (job.method, job.outcome) == ("exact", Outcome.LEARNED)
    exact, mezo = said(store, job, "chosen").split("; ")
    assert exact.startswith("exact (") and mezo.startswith("mezo: ")
    assert all("MB, " in text and "s per step" in text for text in (exact, mezo))
    adapter = learned(folder, job)
    assert all(float(b.abs().max()) > 0 for b in adapter.b.values())
    assert {path.rpartition(".")[2] for path in adapter.a} >= {"q_proj", "gate_proj", "down_proj"}
    assert [row.step for row in store.step_log.steps(job.id)] == list(range(1, (job.total_steps or 0) + 1))
    assert (folder.models / "tiny" / "samples.safetensors").is_file()


@pytest.mark.smoke
def test_killed_at_several_steps_it_ends_like_an_undisturbed_one_bit_for_bit(
    folder: DataFolder, store: Store, tmp_path: Path
) -> None:
    store.texts.add(notes(80), now=NOW)
    undisturbed = queue_job(store, training=EXACT)
    finish(start_worker(folder, undisturbed))
    undisturbed = store.jobs.get(undisturbed.id)
    again = data_folder(tmp_path / "again", dtype="float32")
    other = Store.open(again.database)
    other.texts.add(notes(80), now=NOW)
    job = queue_job(other, training=EXACT)
    for step in (1, 7, 19, 22):  # two of them behind a checkpoint
        kill_at(other, start_worker(again, job), job, step)
        assert step < 19 or any(again.run(job.id).glob("*.safetensors"))
    finish(start_worker(again, job))
    done = other.jobs.get(job.id)
    assert equal(learned(folder, undisturbed), learned(again, done))
    rows = [
        [(row.step, row.scalars, row.loss, row.learning_rate) for row in one.step_log.steps(identity)]
        for one, identity in ((store, undisturbed.id), (other, job.id))
    ]
    assert rows[0] == rows[1]
    assert done.early_stopping == undisturbed.early_stopping
    other.close()


@pytest.mark.slow
def test_it_goes_on_from_what_is_served_and_is_compared_with_the_base_too(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(80), now=NOW)
    first = run(folder, store)
    assert first.adapter
    store.adapters.serve(first.adapter, usable=lambda _: True, now=NOW)
    ledger = [f"Paid the grocer {i} shillings; he counts slowly." for i in range(60)]
    store.texts.add([NewText(text=entry, source="ledger") for entry in ledger], now=NOW)
    done = run(folder, store, parent=first.adapter)
    assert done.parent == first.adapter
    assert not said(store, done, "began anew")
    before, start = store.step_log.evaluation(first.id, first.total_steps or 0), store.step_log.evaluation(done.id, 0)
    base = store.step_log.evaluation(done.id, BASE_STEP)
    assert before is not None and start is not None and base is not None
    assert start.loss != base.loss
    assert not equal(learned(folder, first), learned(folder, done))
    assert "compared with the base model" in said(store, done, "evaluated")
    assert "on old text" in said(store, done, "evaluated")


def test_a_job_keeps_the_rank_of_the_adapter_that_it_continues_and_says_so(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(), now=NOW)
    first = run(folder, store, changed(EXACT, steps=1, rank=2))
    done = run(folder, store, changed(EXACT, steps=1, rank=4), parent=first.adapter)
    assert done.plan is not None and done.plan["rank"] == learned(folder, done).rank == 2
    assert f"rank 2, not 4, since it continues {first.adapter}" in said(store, done, "chosen")


def test_an_adapter_of_other_weights_is_no_start(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(), now=NOW)
    first = run(folder, store, changed(EXACT, steps=1))
    shutil.rmtree(folder.models / "tiny")
    tiny_model_folder(folder.models, dtype="float32", seed=1)
    done = run(folder, store, changed(EXACT, steps=1), parent=first.adapter)
    assert done.parent is None
    assert f"{first.adapter} was trained on other weights of tiny" in said(store, done, "began anew")


@pytest.mark.slow
def test_an_adapter_of_another_method_is_no_start(folder: DataFolder, store: Store) -> None:
    store.texts.add(notes(80), now=NOW)
    mezo = run(folder, store, changed(EXACT, method="mezo", steps=2, probes=1))
    done = run(folder, store, changed(EXACT, steps=2), parent=mezo.adapter)
    assert done.parent is None
    assert f"{mezo.adapter} adapts other linear maps than exact does" in said(store, done, "began anew")


@pytest.mark.slow
def test_a_model_that_fills_in_masks_learns_by_it_too_an_adapter_that_peft_reads(tmp_path: Path) -> None:
    """Its factors have one rank and are finite; test_api_adapter_export.py has PEFT read such a folder."""
    folder = data_folder(
        tmp_path / "data", source=architecture_folder("roberta", tmp_path / "roberta"), dtype="float32"
    )
    store = Store.open(folder.database)
    store.texts.add(notes(40), now=NOW)
    job = run(folder, store, changed(EXACT, method="auto", steps=12, rank=3))
    assert job.method == "exact"
    before, after = (store.step_log.evaluation(job.id, step) for step in (0, job.total_steps or 0))
    assert before is not None and after is not None and after.loss < before.loss
    adapter = learned(folder, job)
    assert {len(a) for a in adapter.a.values()} == {adapter.rank} == {3}
    assert all(bool(torch.isfinite(x).all()) for x in (*adapter.a.values(), *adapter.b.values()))
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 12], ids=["measured at the start", "measured at the end"])
def test_a_text_deleted_while_a_job_is_paused_is_measured_with_no_more(
    folder: DataFolder, store: Store, step: int
) -> None:
    """Losses of other blocks are never compared: what was measured with it is measured again."""
    store.texts.add(notes(60), now=NOW)
    job = queue_job(store, training=EXACT, steps=12)
    kill_when(start_worker(folder, job), lambda: store.step_log.evaluation(job.id, step) is not None)
    before = store.step_log.evaluation(job.id, step)
    assert before is not None
    delete_text(store, next(text.id for text in store.texts.of_job(job.id) if text.held_out))
    for left in (folder.start(job.id), folder.run(job.id)):  # as the scheduler does then
        shutil.rmtree(left, ignore_errors=True)
    finish(start_worker(folder, store.jobs.start(job.id, now=NOW)))
    done = store.jobs.get(job.id)
    assert done.state is JobState.SUCCEEDED, done.error
    start, end = (store.step_log.evaluation(job.id, at) for at in (0, done.total_steps or 0))
    assert start is not None and end is not None
    assert start.block_losses.keys() == end.block_losses.keys()
    assert start.block_losses.keys() != before.block_losses.keys()
