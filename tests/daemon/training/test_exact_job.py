"""Jobs by exact gradients: what they make, how they survive, what they continue."""

import shutil
from pathlib import Path

import pytest
import torch

from pocketllm.daemon.settings import TrainingSettings
from pocketllm.storage.repositories.step_log import BASE_STEP
from pocketllm.storage.tables import JobState, Outcome
from tests.support.daemon.workers import NOW, Device, changed, delete_text, new_device, notes
from tests.support.models.learning import equal
from tests.support.models.taught_model import sample_notes
from tests.support.models.tiny_architectures import architecture_folder
from tests.support.models.tiny_models import tiny_model_folder
from tests.support.stored import serve

#: Checks of the validation loss, and so checkpoints, are after every tenth step. No samples, which take long to draw.
EXACT = TrainingSettings(
    method="exact", steps=24, batch=8, block_tokens=16, measure_every=8, memory_bytes=200_000_000, rehearsal=0.0
)


def test_it_learns_and_says_what_the_other_method_would_take(device_fp32: Device) -> None:
    device = device_fp32
    device.add(sample_notes()[:40])
    job = device.run(changed(EXACT, method="auto", rehearsal=0.125))
    assert (job.method, job.outcome) == ("exact", Outcome.LEARNED)
    exact, mezo = " ".join(device.said(job, "chosen")).split("; ")
    assert exact.startswith("exact (") and mezo.startswith("mezo: ")
    assert all("MB, " in text and "s per step" in text for text in (exact, mezo))
    adapter = device.adapter(job)
    assert all(float(b.abs().max()) > 0 for b in adapter.b.values())
    assert {path.rpartition(".")[2] for path in adapter.a} >= {"q_proj", "gate_proj", "down_proj"}
    assert [row.step for row in device.store.step_log.steps(job.id)] == list(range(1, (job.total_steps or 0) + 1))
    assert (device.folder.models / "tiny" / "samples.safetensors").is_file()


@pytest.mark.smoke
def test_killed_at_several_steps_it_ends_like_an_undisturbed_one_bit_for_bit(
    device_fp32: Device, tmp_path: Path
) -> None:
    device_fp32.add(notes(80))
    undisturbed = device_fp32.work(device_fp32.queue(EXACT))
    with new_device(tmp_path / "again", dtype="float32") as again:
        again.add(notes(80))
        job = again.queue(EXACT)
        for step in (1, 7, 19, 22):  # two of them behind a checkpoint
            again.kill_at(job, step)
            assert step < 19 or any(again.folder.run(job.id).glob("*.safetensors"))
        done = again.work(job)
        assert equal(device_fp32.adapter(undisturbed), again.adapter(done))
        assert device_fp32.records(undisturbed) == again.records(done)
        assert done.early_stopping == undisturbed.early_stopping


@pytest.mark.slow
def test_it_goes_on_from_what_is_served_and_is_compared_with_the_base_too(device_fp32: Device) -> None:
    device = device_fp32
    device.add(notes(80))
    first = device.run(EXACT)
    assert first.adapter
    serve(device.store, first.adapter)
    device.add([f"Paid the grocer {i} shillings; he counts slowly." for i in range(60)], source="ledger")
    done = device.run(EXACT, parent=first.adapter)
    assert done.parent == first.adapter
    assert not device.said(done, "began anew")
    assert device.evaluation(first, first.total_steps or 0)
    assert device.evaluation(done, 0).loss != device.evaluation(done, BASE_STEP).loss
    assert not equal(device.adapter(first), device.adapter(done))
    [verdict] = device.said(done, "evaluated")
    assert "compared with the base model" in verdict and "on old text" in verdict


def test_a_job_keeps_the_rank_of_the_adapter_that_it_continues_and_says_so(device_fp32: Device) -> None:
    device_fp32.add(notes())
    first = device_fp32.run(changed(EXACT, steps=1, rank=2))
    done = device_fp32.run(changed(EXACT, steps=1, rank=4), parent=first.adapter)
    assert done.plan is not None and done.plan["rank"] == device_fp32.adapter(done).rank == 2
    assert f"rank 2, not 4, since it continues {first.adapter}" in " ".join(device_fp32.said(done, "chosen"))


def test_an_adapter_of_other_weights_is_no_start(device_fp32: Device) -> None:
    device_fp32.add(notes())
    first = device_fp32.run(changed(EXACT, steps=1))
    shutil.rmtree(device_fp32.folder.models / "tiny")
    tiny_model_folder(device_fp32.folder.models, dtype="float32", seed=1)
    done = device_fp32.run(changed(EXACT, steps=1), parent=first.adapter)
    assert done.parent is None
    [why] = device_fp32.said(done, "began anew")
    assert f"{first.adapter} was trained on other weights of tiny" in why


@pytest.mark.slow
def test_an_adapter_of_another_method_is_no_start(device_fp32: Device) -> None:
    device_fp32.add(notes(80))
    mezo = device_fp32.run(changed(EXACT, method="mezo", steps=2, probes=1))
    done = device_fp32.run(changed(EXACT, steps=2), parent=mezo.adapter)
    assert done.parent is None
    [why] = device_fp32.said(done, "began anew")
    assert f"{mezo.adapter} adapts other linear maps than exact does" in why


@pytest.mark.slow
def test_a_model_that_fills_in_masks_learns_by_it_too_an_adapter_that_peft_reads(tmp_path: Path) -> None:
    """Its factors have one rank and are finite; test_api_adapter_export.py has PEFT read such a folder."""
    source = architecture_folder("roberta", tmp_path / "roberta")
    with new_device(tmp_path / "data", source=source, dtype="float32") as device:
        device.add(notes(40))
        job = device.run(changed(EXACT, method="auto", steps=12, rank=3))
        assert job.method == "exact"
        assert device.evaluation(job, job.total_steps or 0).loss < device.evaluation(job, 0).loss
        adapter = device.adapter(job)
        assert {len(a) for a in adapter.a.values()} == {adapter.rank} == {3}
        assert all(bool(torch.isfinite(x).all()) for x in (*adapter.a.values(), *adapter.b.values()))


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 12], ids=["measured at the start", "measured at the end"])
def test_a_text_deleted_while_a_job_is_paused_is_measured_with_no_more(device_fp32: Device, step: int) -> None:
    """Losses of other blocks are never compared: what was measured with it is measured again."""
    device, store = device_fp32, device_fp32.store
    device.add(notes(60))
    job = device.queue(EXACT, steps=12)
    device.kill_when(job, lambda: store.step_log.evaluation(job.id, step) is not None)
    before = device.evaluation(job, step)
    delete_text(store, next(text.id for text in store.texts.of_job(job.id) if text.held_out))
    for left in (device.folder.start(job.id), device.folder.run(job.id)):  # as the scheduler does then
        shutil.rmtree(left, ignore_errors=True)
    done = device.work(store.jobs.start(job.id, now=NOW))
    assert done.state is JobState.SUCCEEDED, done.error
    start, end = (device.evaluation(job, at) for at in (0, done.total_steps or 0))
    assert start.block_losses.keys() == end.block_losses.keys()
    assert start.block_losses.keys() != before.block_losses.keys()
