"""A data folder with a tiny model and texts, and real workers on it."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.child import child_environment
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training.run import TrainingRun
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.lora_folder import CONFIG_NAME, WEIGHTS_NAME
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Requester, Step
from tests.support.models.tiny_models import tiny_model_folder

#: How long a worker may take: on an emulated core, minutes until it has imported torch.
WORKER_SECONDS = 900.0
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TRAINING = TrainingSettings(method="mezo", steps=8, batch=2, block_tokens=16, rank=2, step_size=1e-2, measure_every=4)


def data_folder(root: Path, *, source: Path | None = None, dtype: str = "bfloat16") -> DataFolder:
    """A data folder that holds the tiny model, or the one in a Hugging Face folder, under the name "tiny"."""
    folder = DataFolder(root)
    folder.make()
    if source is None:
        tiny_model_folder(folder.models, dtype=dtype)
    else:
        import_model(str(source), folder.models, name="tiny", dtype=dtype)
    return folder


def notes(count: int = 30) -> list[NewText]:
    """Texts with something in common."""
    return [NewText(text=f"Wind west, glass rising. Mug of tea number {i}.", source="test") for i in range(count)]


def new_job(**given: Any) -> Job:
    """A job of the owner's for the tiny model, that is not queued yet."""
    usual: dict[str, Any] = {
        "requested_by": Requester.OWNER,
        "immediate": True,
        "model": "tiny",
        "seed": 0,
        "total_steps": 8,
    }
    return Job(**{**usual, "created_at": NOW, **given})


def new_step(job_id: str, number: int, **given: Any) -> Step:
    """A row of the step log. given: columns with other values than here."""
    usual: dict[str, Any] = {"seed": 7, "scalars": [0.5], "loss": 3.0, "learning_rate": 2**-10}
    return Step(**{"job_id": job_id, "step": number, "tokens": 100, "seconds": 2.0, **usual, **given})


def changed(training: TrainingSettings = TRAINING, /, **settings: object) -> TrainingSettings:
    """The same with other values of some settings."""
    return TrainingSettings.model_validate(training.model_dump() | settings)


def queue_job(
    store: Store,
    *,
    seed: int = 0,
    steps: int | None = None,
    training: TrainingSettings = TRAINING,
    parent: str | None = None,
) -> Job:
    """A job for the tiny model, marked as running, from the base model on or from a parent."""
    settings, fixed = training.model_dump(mode="json"), None if training.steps == "auto" else training.steps
    job = store.jobs.add(new_job(seed=seed, total_steps=steps or fixed, settings=settings, mode=training.mode))
    store.jobs.start(job.id, now=NOW)
    return store.jobs.update(job.id, parent=parent)


def run_here(folder: DataFolder, store: Store, job: Job, seconds: float = 3600.0) -> Job:
    """Run a job to its end in this process: a worker's work, without its priority and its cap on memory.

    Raises MezoError where a worker would fail the job.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketllm.daemon.training.run.cap_anonymous_memory", lambda _: None)
        TrainingRun(folder, store, job, seconds).run()
    done = store.jobs.get(job.id)
    assert done.state is JobState.SUCCEEDED
    assert "no report" not in {event.kind for event in store.jobs.events(job.id)}
    return done


def write_adapter_files(folder: Path) -> None:
    """What an adapter's folder contains, as far as only its being there matters."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (folder / name).write_bytes(b"x")


def delete_text(store: Store, text_id: str) -> None:
    """Delete a text, and its bytes in the log."""
    assert store.deletions.erase([store.deletions.texts([text_id], now=NOW)])


def start_worker(folder: DataFolder, job: Job) -> subprocess.Popen[bytes]:
    """A real worker process; its standard input stays open, as the daemon would keep it."""
    command = [sys.executable, "-m", "pocketllm.daemon.training.worker", "--data-dir", str(folder.root)]
    command += ["--job", job.id, "--start", str(job.starts), "--seconds", "3600"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment())


def finish(worker: subprocess.Popen[bytes]) -> str:
    """Wait for a worker to end by itself; returns what it said. Raises AssertionError when it failed."""
    assert worker.stdin is not None and worker.stderr is not None
    with worker.stderr, worker.stdin:
        said = worker.stderr.read().decode()
        assert worker.wait(WORKER_SECONDS) == 0, said
    return said


def kill_at(store: Store, worker: subprocess.Popen[bytes], job: Job, step: int) -> int:
    """Kill -9 a worker as soon as its step log has reached a step; returns the step it had really reached."""
    kill_when(worker, lambda: store.step_log.last_step(job.id) >= step)
    return store.step_log.last_step(job.id)


def kill_when(worker: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    """Kill -9 a worker as soon as it has got somewhere."""
    deadline = time.monotonic() + WORKER_SECONDS
    while not there():
        with suppress(subprocess.TimeoutExpired):  # leaves the processor to the worker, whose priority is the lowest
            worker.wait(0.005)
        assert worker.poll() is None, "the worker ended before it was killed"
        assert time.monotonic() < deadline, "the worker did not get there"
    worker.kill()
    worker.wait()
    assert worker.stdin is not None and worker.stderr is not None
    worker.stdin.close()
    worker.stderr.close()
