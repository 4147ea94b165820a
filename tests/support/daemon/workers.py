"""A data folder with a tiny model and texts, and real workers on it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
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
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Evaluation, Job, JobState, Report, Requester, Step
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


def write_adapter_files(folder: Path) -> None:
    """What an adapter's folder contains, as far as only its being there matters."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (folder / name).write_bytes(b"x")


def delete_text(store: Store, text_id: str) -> None:
    """Delete a text, and its bytes in the log."""
    assert store.deletions.erase([store.deletions.texts([text_id], now=NOW)])


@dataclass(frozen=True)
class Device:
    """A data folder that holds a model named "tiny", its store, and what becomes of jobs on it."""

    folder: DataFolder
    store: Store

    @property
    def serving(self) -> str | None:
        """The id of the adapter that is served."""
        adapter = self.store.adapters.serving("tiny")
        return None if adapter is None else adapter.id

    def add(self, texts: Iterable[str | NewText], *, source: str = "test", now: datetime = NOW) -> tuple[str, ...]:
        """Store texts; their ids."""
        new = [NewText(text=text, source=source) if isinstance(text, str) else text for text in texts]
        return self.store.texts.add(new, now=now).ids

    def queue(self, training: TrainingSettings = TRAINING, **given: Any) -> Job:
        """See queue_job."""
        return queue_job(self.store, training=training, **given)

    def run(self, training: TrainingSettings = TRAINING, *, seconds: float = 3600.0, **given: Any) -> Job:
        """Queue a job and run it here: see queue_job and run_here."""
        return self.run_here(self.queue(training, **given), seconds)

    def run_here(self, job: Job, seconds: float = 3600.0) -> Job:
        """Run a job to its end in this process: a worker's work, without its priority and its cap on memory.

        Raises EngineError where a worker would fail the job.
        """
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pocketllm.daemon.training.run.cap_anonymous_memory", lambda _: None)
            TrainingRun(self.folder, self.store, job, seconds).run()
        done = self.store.jobs.get(job.id)
        assert done.state is JobState.SUCCEEDED
        assert not self.said(job, "no report")
        return done

    def work(self, job: Job) -> Job:
        """Let a real worker end a job; the job. Raises AssertionError when the worker failed."""
        finish(self.start_worker(job))
        return self.store.jobs.get(job.id)

    def start_worker(self, job: Job) -> subprocess.Popen[bytes]:
        """A real worker process; its standard input stays open, as the daemon would keep it."""
        command = [sys.executable, "-m", "pocketllm.daemon.training.worker", "--data-dir", str(self.folder.root)]
        command += ["--job", job.id, "--start", str(job.starts), "--seconds", "3600"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment())

    def kill_at(self, job: Job, step: int) -> int:
        """Kill -9 a worker as soon as its step log has reached a step; returns the step it had really reached."""
        self.kill_when(job, lambda: self.store.step_log.last_step(job.id) >= step)
        return self.store.step_log.last_step(job.id)

    def kill_when(self, job: Job, there: Callable[[], bool]) -> None:
        """Start a worker, and kill -9 it as soon as it has got somewhere."""
        worker = self.start_worker(job)
        deadline = time.monotonic() + WORKER_SECONDS
        while not there():
            with suppress(subprocess.TimeoutExpired):  # leaves the processor to the worker: its priority is the lowest
                worker.wait(0.005)
            assert worker.poll() is None, "the worker ended before it was killed"
            assert time.monotonic() < deadline, "the worker did not get there"
        worker.kill()
        worker.wait()
        assert worker.stdin is not None and worker.stderr is not None
        worker.stdin.close()
        worker.stderr.close()

    def said(self, job: Job, *kinds: str) -> list[str]:
        """The messages of a job's events of these kinds."""
        return [event.message for event in self.store.jobs.events(job.id) if event.kind in kinds]

    def evaluation(self, job: Job, step: int) -> Evaluation:
        """What was measured on the held-out text after a step."""
        found = self.store.step_log.evaluation(job.id, step)
        assert found is not None
        return found

    def records(self, job: Job) -> list[tuple[Any, ...]]:
        """A job's steps, without what its clock and processes differ in."""
        return [(row.step, row.scalars, row.loss, row.learning_rate) for row in self.store.step_log.steps(job.id)]

    def report(self, job: Job) -> Report:
        """A job's report."""
        found = self.store.reports.find(job.id)
        assert found is not None
        return found

    def adapter(self, job: Job) -> Adapter:
        """What a job has made."""
        assert job.adapter is not None
        return load_adapter(self.folder.adapter(job.adapter))


@contextmanager
def new_device(root: Path, *, source: Path | None = None, dtype: str = "bfloat16") -> Iterator[Device]:
    """One with a new data folder: see data_folder."""
    folder = data_folder(root, source=source, dtype=dtype)
    with closing(Store.open(folder.database)) as store:
        yield Device(folder, store)


def finish(worker: subprocess.Popen[bytes]) -> str:
    """Wait for a worker to end by itself; returns what it said. Raises AssertionError when it failed."""
    assert worker.stdin is not None and worker.stderr is not None
    with worker.stderr, worker.stdin:
        said = worker.stderr.read().decode()
        assert worker.wait(WORKER_SECONDS) == 0, said
    return said
