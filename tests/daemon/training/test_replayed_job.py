"""A MeZO job's step log, replayed from where the job started, gives what the job has made, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pocketllm.daemon.training.checkpoints import StoredRun
from pocketllm.daemon.training.early_stopping import MAX_HALVINGS
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME, open_model_folder
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.estimator import replay
from pocketllm.storage.tables import Job, JobState
from tests.support.daemon.workers import Device, changed, new_device, notes


def start_of(device: Device, job: Job) -> Adapter | FullWeights:
    """The parameters that a job started from."""
    folder = device.folder
    if job.mode == "lora":
        return load_adapter(folder.start(job.id))
    base = folder.adapter(job.parent) if job.parent else folder.models / job.model
    return LanguageModel(open_model_folder(base)).full()


def made_by(device: Device, job: Job) -> dict[str, torch.Tensor]:
    """The tensors that a job has stored."""
    assert job.adapter
    if job.mode == "lora":
        return tensors_of(device.adapter(job))
    return load_file(device.folder.adapter(job.adapter) / WEIGHTS_NAME)


def tensors_of(theta: Adapter | FullWeights) -> dict[str, torch.Tensor]:
    if isinstance(theta, FullWeights):
        return theta.tensors
    return {f"{path}.A": a for path, a in theta.a.items()} | {f"{path}.B": b for path, b in theta.b.items()}


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Compared as numbers, -0.0 would equal 0.0."""
    return {
        name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def assert_replayed(device: Device, job: Job) -> None:
    """It takes no text and no forward passes. Without the last step, the end is another one."""
    records, made = StoredRun(device.store, job.id, device.folder.run(job.id)).records(), bits(made_by(device, job))
    assert [record.step for record in records] == list(range(1, (job.total_steps or 0) + 1))
    whole, shorter = start_of(device, job), start_of(device, job)
    replay(whole, records, job.settings["noise"])
    assert bits(tensors_of(whole)) == made
    replay(shorter, records[:-1], job.settings["noise"])
    assert not records or bits(tensors_of(shorter)) != made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("bfloat16", {"noise": "gaussian"}),
        ("bfloat16", {"mode": "full", "noise": "gaussian"}),
        ("float32", {"mode": "full"}),
        ("float16", {"mode": "full"}),
    ],
    ids=["lora, gaussian", "full, gaussian", "full, float32", "full, float16"],
)
def test_a_job_and_one_that_goes_on_from_it(tmp_path: Path, dtype: str, settings: dict[str, object]) -> None:
    training = changed(probes=2, epsilon=1e-3, step_size=1e-3, **settings)
    with new_device(tmp_path / "data", dtype=dtype) as device:
        device.add(notes())
        first = device.run(training, seed=3)
        second = device.run(training, seed=9, parent=first.adapter)
        assert second.parent == first.adapter
        for job in (first, second):
            assert job.total_steps == training.steps
            assert_replayed(device, job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "back"),
    [pytest.param({"step_size": 0.4}, 0, marks=pytest.mark.smoke), ({"mode": "full", "step_size": 0.1}, 2)],
    ids=["to the best at the end", "full, with smaller steps"],
)
def test_a_worker_goes_back_and_can_be_replayed(device: Device, settings: dict[str, object], back: int) -> None:
    device.add(notes())
    training = changed(epsilon=1e-3, **settings)
    undisturbed, disturbed = (device.queue(training, steps=60, seed=5) for _ in range(2))
    one = device.work(undisturbed)
    device.kill_at(disturbed, 15)
    two = device.work(disturbed)
    assert one.state is two.state is JobState.SUCCEEDED
    assert one.early_stopping is not None
    assert one.early_stopping == two.early_stopping
    assert one.early_stopping["halvings"] >= back
    assert one.total_steps == two.total_steps == one.early_stopping["best_step"] == len(device.records(one))
    assert device.records(one) == device.records(two)
    for job in (one, two):
        assert_replayed(device, job)
        # A check after the very last step may halve, and the run ends all the same.
        halvings = one.early_stopping["halvings"]
        assert len(device.said(job, "went back")) in (min(halvings, MAX_HALVINGS), halvings - 1)
        assert len(device.said(job, "ended early")) == (one.total_steps < 60)
