"""An adapter that was trained elsewhere is judged on this device's held-out text, and served if it is better."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from pocketllm.added_adapters import add_adapter
from pocketllm.daemon.settings import Settings, TrainingSettings
from pocketllm.engine.errors import BadRequest, TrainingDiverged
from pocketllm.engine.formats.lora_folder import base_sha256
from pocketllm.engine.params.lora import load_adapter
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import ADDED, BASE, Job, Outcome, Requester
from tests.support.daemon.workers import (
    NOW,
    data_folder,
    delete_text,
    finish,
    new_job,
    queue_job,
    run_here,
    start_worker,
)
from tests.support.models.learning import equal
from tests.support.models.taught_model import taught_folder, unknown_notes

TRAINING = TrainingSettings(method="exact", steps=40, batch=8, block_tokens=64, measure_every=40, rehearsal=0.0)


class Device:
    """A data folder with the notes that both devices have, under a name of its own."""

    def __init__(self, root: Path, model: Path, source: str) -> None:
        self.folder = data_folder(root, source=model, dtype="float32")
        self.store = Store.open(self.folder.database)
        self.settings = Settings(data_dir=root, model="tiny", training=TRAINING)
        self.source = source

    def write(self, notes: list[str]) -> list[str]:
        return list(self.store.texts.add([NewText(text=note, source=self.source) for note in notes], now=NOW).ids)

    def queue(self, adapter: Path) -> Job:
        job, _ = add_adapter(adapter, self.folder, self.store, self.settings, now=NOW)
        return job

    def judge(self, adapter: Path) -> Job:
        return run_here(self.folder, self.store, self.store.jobs.start(self.queue(adapter).id, now=NOW))

    @property
    def serving(self) -> str | None:
        adapter = self.store.adapters.serving("tiny")
        return None if adapter is None else adapter.id


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The adapter that the laptop has learned."""
    laptop = Device(tmp_path_factory.mktemp("laptop"), model, "laptop")
    laptop.write(unknown_notes())
    done = run_here(laptop.folder, laptop.store, queue_job(laptop.store, training=TRAINING))
    assert done.outcome is Outcome.LEARNED and done.adapter
    laptop.store.close()
    return laptop.folder.adapter(done.adapter)


@pytest.fixture
def phone(tmp_path: Path, model: Path) -> Iterator[Device]:
    made = Device(tmp_path / "phone", model, "phone")
    yield made
    made.store.close()


def spoiled(learned: Path, to: Path, value: float) -> Path:
    """The same adapter with other numbers."""
    adapter = load_adapter(learned)
    for b in adapter.b.values():
        b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(0)) * value)
    adapter.save(to)
    return to


def test_a_better_one_is_served_and_its_texts_stay_new(phone: Device, learned: Path) -> None:
    ids = phone.write(unknown_notes())
    always = {name for name in ids if phone.store.texts.get(name).held_out}
    done = phone.judge(learned)
    assert done.outcome is Outcome.LEARNED, [event.message for event in phone.store.jobs.events(done.id)]
    assert (done.method, done.start_from, done.compared_with, phone.serving) == (ADDED, ADDED, BASE, done.adapter)
    assert phone.store.step_log.steps(done.id) == []
    texts = phone.store.texts.of_job(done.id)
    assert {text.id for text in texts if text.held_out} == always and {text.id for text in texts} == set(ids)
    assert all(phone.store.texts.get(name).learned_in is None for name in ids)
    served = phone.folder.adapter(phone.serving or "")
    assert equal(load_adapter(served), load_adapter(learned))
    assert base_sha256(served) == base_sha256(learned)

    # It is like any other: a job goes on from it, and holds out as many texts of little text as without it.
    job = phone.store.jobs.add(new_job(requested_by=Requester.THRESHOLD, settings=TRAINING.model_dump(mode="json")))
    job = phone.store.jobs.start(job.id, now=NOW + timedelta(hours=1))
    assert (job.parent, job.compared_with) == (done.adapter, done.adapter)
    assert len([text for text in phone.store.texts.of_job(job.id) if text.held_out]) == 12

    # What it has learned is not known here: it is served no longer when any text is deleted.
    delete_text(phone.store, next(name for name in ids if name not in always))
    assert phone.serving is None


def test_a_worse_one_is_kept_and_a_rollback_goes_back_to_what_was_served(
    phone: Device, learned: Path, tmp_path: Path
) -> None:
    phone.write(unknown_notes())
    first = phone.judge(learned).adapter
    worse = phone.judge(spoiled(learned, tmp_path / "worse", 0.5))
    assert (worse.outcome, worse.parent, worse.compared_with, phone.serving) == (Outcome.WORSE, first, first, first)
    again = phone.judge(learned)
    assert again.outcome in (Outcome.NO_PROOF, Outcome.TOO_LITTLE) and phone.serving == first  # the same is no better
    phone.store.adapters.serve(again.adapter or "", usable=lambda adapter: True, now=NOW)
    assert phone.store.adapters.roll_back("tiny", usable=lambda adapter: True, now=NOW).serving == first


def test_too_little_held_out_text_is_said(phone: Device, learned: Path) -> None:
    ids = phone.write(unknown_notes())
    kept = [name for name in ids if phone.store.texts.get(name).held_out]
    for name in (kept[0], *kept[2:]):
        delete_text(phone.store, name)
    done = phone.judge(learned)
    assert done.outcome is Outcome.TOO_LITTLE and phone.serving is None
    said = [event.message for event in phone.store.jobs.events(done.id) if event.kind in ("evaluated", "succeeded")]
    assert said[0].startswith("too little text to tell yet") and "next job" not in " ".join(said)
    job = phone.store.jobs.add(new_job(requested_by=Requester.THRESHOLD))
    assert phone.store.jobs.start(job.id, now=NOW + timedelta(hours=1)).parent is None
    delete_text(phone.store, kept[1])
    with pytest.raises(BadRequest, match="No text on this device is held out"):
        phone.judge(learned)


def test_numbers_that_lead_to_none_fail_the_job(phone: Device, learned: Path, tmp_path: Path) -> None:
    phone.write(unknown_notes())
    with pytest.raises(TrainingDiverged, match="no number"):
        phone.judge(spoiled(learned, tmp_path / "huge", 1e30))
    assert phone.serving is None


def test_a_real_worker_judges_it_again_after_a_deletion(phone: Device, learned: Path) -> None:
    ids = phone.write(unknown_notes())
    job = phone.store.jobs.start(phone.queue(learned).id, now=NOW)
    delete_text(phone.store, ids[0])
    assert phone.store.jobs.get(job.id).reasons
    finish(start_worker(phone.folder, phone.store.jobs.start(job.id, now=NOW)))
    done = phone.store.jobs.get(job.id)
    assert (done.outcome, phone.serving) == (Outcome.LEARNED, done.adapter)
    assert ids[0] not in {text.id for text in phone.store.texts.of_job(job.id)}
