"""An adapter that was trained elsewhere is judged on this device's held-out text, and served if it is better."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketllm.added_adapters import add_adapter
from pocketllm.daemon.settings import Settings, TrainingSettings
from pocketllm.engine.errors import BadRequest, TrainingDiverged
from pocketllm.engine.formats.lora_folder import base_sha256
from pocketllm.engine.params.lora import load_adapter
from pocketllm.storage.tables import ADDED, BASE, CANDIDATE, Job, Outcome, Requester
from tests.support.daemon.workers import NOW, Device, delete_text, new_device
from tests.support.models.learning import equal
from tests.support.models.taught_model import taught_folder, unknown_notes
from tests.support.stored import roll_back, serve, start_job, succeed

pytestmark = pytest.mark.smoke

TRAINING = TrainingSettings(method="exact", steps=40, batch=8, block_tokens=64, measure_every=40, rehearsal=0.0)


class Phone(Device):
    """A device that judges adapters from elsewhere."""

    def queue_added(self, adapter: Path) -> Job:
        settings = Settings(data_dir=self.folder.root, model="tiny", training=TRAINING)
        job, _ = add_adapter(adapter, self.folder, self.store, settings, now=NOW)
        return self.store.jobs.start(job.id, now=NOW)

    def judge(self, adapter: Path) -> Job:
        return self.run_here(self.queue_added(adapter))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The adapter that the laptop has learned."""
    with new_device(tmp_path_factory.mktemp("laptop"), source=model, dtype="float32") as laptop:
        laptop.add(unknown_notes(), source="laptop")
        done = laptop.run(TRAINING)
        assert done.outcome is Outcome.LEARNED and done.adapter
        return laptop.folder.adapter(done.adapter)


@pytest.fixture
def phone(tmp_path: Path, model: Path) -> Iterator[Phone]:
    with new_device(tmp_path / "phone", source=model, dtype="float32") as made:
        yield Phone(made.folder, made.store)


def spoiled(learned: Path, to: Path, value: float) -> Path:
    """The same adapter with other numbers."""
    adapter = load_adapter(learned)
    for b in adapter.b.values():
        b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(0)) * value)
    adapter.save(to)
    return to


def test_a_better_one_is_served_and_its_texts_stay_new(phone: Phone, learned: Path) -> None:
    ids = phone.add(unknown_notes(), source="phone")
    always = {name for name in ids if phone.store.texts.get(name).held_out}
    done = phone.judge(learned)
    assert done.outcome is Outcome.LEARNED, phone.said(done, "evaluated")
    assert (done.method, done.start_from, done.compared_with, phone.serving) == (ADDED, ADDED, BASE, done.adapter)
    assert phone.store.step_log.steps(done.id) == []
    texts = phone.store.texts.of_job(done.id)
    assert {text.id for text in texts if text.held_out} == always and {text.id for text in texts} == set(ids)
    assert all(phone.store.texts.get(name).learned_in is None for name in ids)
    served = phone.folder.adapter(phone.serving or "")
    assert equal(load_adapter(served), load_adapter(learned))
    assert base_sha256(served) == base_sha256(learned)

    # It is like any other: a job goes on from it, and holds out as many texts of little text as without it.
    settings, tomorrow = TRAINING.model_dump(mode="json"), NOW + timedelta(days=1)
    job = start_job(phone.store, requested_by=Requester.THRESHOLD, settings=settings, now=tomorrow)
    assert (job.parent, job.compared_with) == (done.adapter, done.adapter)
    assert len([text for text in phone.store.texts.of_job(job.id) if text.held_out]) == 12

    # What it has learned is not known here: it is served no longer when any text is deleted.
    delete_text(phone.store, next(name for name in ids if name not in always))
    assert phone.serving is None


def test_a_worse_one_is_kept_and_not_served(phone: Phone, learned: Path, tmp_path: Path) -> None:
    phone.add(unknown_notes(), source="phone")
    first = phone.judge(learned).adapter
    worse = phone.judge(spoiled(learned, tmp_path / "worse", 0.5))
    assert (worse.outcome, worse.parent, worse.compared_with, phone.serving) == (Outcome.WORSE, first, first, first)
    again = phone.judge(learned)
    assert again.outcome in (Outcome.NO_PROOF, Outcome.TOO_LITTLE) and phone.serving == first  # the same is no better
    serve(phone.store, again.adapter or "")
    assert roll_back(phone.store).serving == first


def test_too_little_held_out_text_is_said(phone: Phone, learned: Path) -> None:
    ids = phone.add(unknown_notes(), source="phone")
    kept = [name for name in ids if phone.store.texts.get(name).held_out]
    for name in (kept[0], *kept[2:]):
        delete_text(phone.store, name)
    done = phone.judge(learned)
    assert done.outcome is Outcome.TOO_LITTLE and phone.serving is None
    said = phone.said(done, "evaluated", "succeeded")
    assert said[0].startswith("too little text to tell yet") and "next job" not in " ".join(said)
    assert start_job(phone.store, requested_by=Requester.THRESHOLD, now=NOW + timedelta(days=1)).parent is None
    delete_text(phone.store, kept[1])
    with pytest.raises(BadRequest, match="No text on this device is held out"):
        phone.judge(learned)


def test_numbers_that_lead_to_none_fail_the_job(phone: Phone, learned: Path, tmp_path: Path) -> None:
    phone.add(unknown_notes(), source="phone")
    with pytest.raises(TrainingDiverged, match="no number"):
        phone.judge(spoiled(learned, tmp_path / "huge", 1e30))
    assert phone.serving is None


def test_a_real_worker_judges_it_again_after_a_deletion(phone: Phone, learned: Path) -> None:
    ids = phone.add(unknown_notes(), source="phone")
    job = phone.queue_added(learned)
    delete_text(phone.store, ids[0])
    assert phone.store.jobs.get(job.id).reasons
    done = phone.work(phone.store.jobs.start(job.id, now=NOW))
    assert (done.outcome, phone.serving) == (Outcome.LEARNED, done.adapter)
    assert ids[0] not in {text.id for text in phone.store.texts.of_job(job.id)}


def test_a_real_worker_judges_a_candidate_again_on_newer_text(phone: Phone, learned: Path) -> None:
    """The same adapter proves better, without a step."""
    phone.add(["few words"])
    first = start_job(phone.store)
    candidate = succeed(phone.store, first, outcome=Outcome.TOO_LITTLE)
    shutil.copytree(learned, phone.folder.adapter(candidate.id))
    newer = phone.add(unknown_notes(), source="phone")
    given: dict[str, Any] = {"method": CANDIDATE, "start_from": CANDIDATE, "requested_by": Requester.THRESHOLD}
    settings, tomorrow = TRAINING.model_dump(mode="json"), NOW + timedelta(days=1)
    done = phone.work(start_job(phone.store, settings=settings, now=tomorrow, **given))
    assert done.outcome is Outcome.LEARNED, phone.said(done, "evaluated")
    assert done.adapter == done.parent == candidate.id == phone.serving
    assert phone.store.step_log.steps(done.id) == []
    assert equal(load_adapter(phone.folder.adapter(candidate.id)), load_adapter(learned))
    assert {phone.store.texts.get(name).learned_in for name in newer} == {None}
