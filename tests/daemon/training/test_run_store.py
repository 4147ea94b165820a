"""Runs of a tiny real model in a real database: killed at every write, they end like an undisturbed one."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import pytest
import torch

from pocketllm.backprop.gradients import PassSize
from pocketllm.backprop.method import Exact, ExactPlan
from pocketllm.daemon.training.checkpoints import Checkpoint, StoredRun, ended_early
from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.daemon.training.trainer import CHECKPOINT_SECONDS, Run, train
from pocketllm.engine.data.batches import shuffled
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.method import Method, StepRecord
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.method import MeZO, MeZOPlan
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job
from tests.support.daemon.workers import queue_job
from tests.support.models.backpropagation import layers_adapter
from tests.support.models.learning import equal, some_adapter, some_blocks

STEPS, EVERY = 10, 2
#: Of a run that writes more often than this, every third write is cut.
MANY_WRITES = 30
LEARNED, CHECKED = (some_blocks(9),), (some_blocks(3, 8),)

What = Literal["mezo", "full", "exact"]


class Killed(Exception):
    """In place of a real kill."""


class CutRun(StoredRun):
    """A StoredRun whose process is killed in front of, or right behind, a number of writes."""

    def __init__(self, store: Store, job: str, folder: Path, *, at: int, behind: bool) -> None:
        super().__init__(store, job, folder)
        self.writes, self.saved, self._at, self._behind = 0, list[int](), at, behind

    def append(self, record: StepRecord, *, seconds: float) -> None:
        self._cut(lambda: super(CutRun, self).append(record, seconds=seconds))

    def keep(self, stopping: EarlyStopping) -> None:
        self._cut(lambda: super(CutRun, self).keep(stopping))

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        self._cut(lambda: super(CutRun, self).go_back(stopping, step=step))

    def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
        self.saved.append(checkpoint.step)
        self._cut(lambda: super(CutRun, self).save(checkpoint, stopping))

    def _cut(self, write: Callable[[], None]) -> None:
        self.writes += 1
        if self.writes == self._at and not self._behind:
            raise Killed
        write()
        if self.writes == self._at:
            raise Killed


@dataclass
class Runs:
    """Jobs that learn alike on one model, in one database."""

    model_folder: ModelFolder
    store: Store
    folder: Path
    what: What
    rate: float
    #: Of the clock, each time it is read.
    tick: float = 0.0

    def queue(self) -> Job:
        return queue_job(self.store, steps=STEPS)

    def start(self, job: Job, *, at: int = -1, behind: bool = False) -> tuple[Adapter | FullWeights, CutRun]:
        """What a worker does, with a model of its own; trainable at the end, and what it was stored in."""
        job = self.store.jobs.get(job.id)
        model = LanguageModel(self.model_folder)
        trainable: Adapter | FullWeights = model.full() if self.what == "full" else self._adapter(model)
        model.set_parameters(trainable)

        def to_start() -> None:
            if isinstance(trainable, FullWeights):
                trainable.reload(self.model_folder.weights)
                return
            start = self._adapter(model)
            for path in start.b:
                trainable.a[path].copy_(start.a[path])
                trainable.b[path].copy_(start.b[path])

        store = CutRun(self.store, job.id, self.folder / job.id, at=at, behind=behind)
        times = count()
        with torch.no_grad():
            train(
                self._method(model, trainable, to_start),
                store,
                Run(
                    steps=STEPS,
                    batch=shuffled(LEARNED, size=4, seed=4),
                    remaining=lambda step: 1 - (step - 1) / STEPS,
                    validation_loss=lambda: model.mean_loss(CHECKED),
                    validated_on="",
                    check_every=EVERY,
                    measure=lambda _: None,
                    measure_every=100,
                    clock=lambda: next(times) * self.tick,
                ),
            )
        return trainable, store

    def _adapter(self, model: LanguageModel) -> Adapter:
        return layers_adapter(model, dtype=torch.float32) if self.what == "exact" else some_adapter(model)

    def _method(self, model: LanguageModel, trainable: Adapter | FullWeights, to_start: Callable[[], None]) -> Method:
        if isinstance(trainable, Adapter) and self.what == "exact":
            size = PassSize(stored=100, micro_batch=100)
            return Exact(model, trainable, ExactPlan(seed=4, rate=self.rate), size, to_start=to_start)
        plan = MeZOPlan(seed=4, epsilon=1e-3, step_size=self.rate, probes=2)
        return MeZO(lambda points, batch: model.losses_at(points, batch, 100), trainable, plan, to_start)

    def told(self, job: Job) -> tuple[object, ...]:
        """All that is stored of a run."""
        rows = [(row.step, row.scalars, row.loss, row.learning_rate) for row in self.store.step_log.steps(job.id)]
        job = self.store.jobs.get(job.id)
        events = [event.message for event in self.store.jobs.events(job.id)]
        return rows, job.early_stopping, job.total_steps, events


def same(one: Adapter | FullWeights, other: Adapter | FullWeights) -> bool:
    if isinstance(one, Adapter) and isinstance(other, Adapter):
        return equal(one, other)
    assert isinstance(one, FullWeights)
    assert isinstance(other, FullWeights)
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rate", "back", "tick"),
    [
        ("mezo", 0.2, 1, 0.0),
        ("mezo", 2000.0, 3, 0.0),
        ("full", 0.3, 1, 0.0),
        pytest.param("exact", 0.15, 1, CHECKPOINT_SECONDS / 3, marks=pytest.mark.smoke),
        ("exact", 300.0, 1, CHECKPOINT_SECONDS),
    ],
    ids=["mezo goes back", "mezo ends early", "full", "exact goes back", "exact diverges first"],
)
def test_killed_at_any_write_it_ends_like_an_undisturbed_run_bit_for_bit(
    tiny_bf16: ModelFolder, store: Store, tmp_path: Path, what: What, rate: float, back: int, tick: float
) -> None:
    runs = Runs(tiny_bf16, store, tmp_path / "runs", what, rate, tick)
    undisturbed = runs.queue()
    expected, stored = runs.start(undisturbed)
    early_stopping = store.jobs.get(undisturbed.id).early_stopping
    assert early_stopping is not None
    assert early_stopping["halvings"] >= back, early_stopping
    assert (stored.saved != []) == ((what == "exact" and early_stopping["best_step"] > 0) or tick > 0), stored.saved
    every = 1 if stored.writes <= MANY_WRITES else 3
    for at in range(1, stored.writes + 1, every):
        for behind in (False, True):
            job = runs.queue()
            with suppress(Killed):
                runs.start(job, at=at, behind=behind)
            trainable, _ = runs.start(job)
            assert same(trainable, expected), (at, behind)
            assert runs.told(job) == runs.told(undisturbed), (at, behind)


class TestCheckpoints:
    """In real files, of states that tell steps apart."""

    @pytest.fixture
    def run(self, store: Store, tmp_path: Path) -> StoredRun:
        job = queue_job(store, steps=STEPS)
        run = StoredRun(store, job.id, tmp_path / "runs" / job.id)
        for step in range(1, STEPS + 1):
            run.append(
                StepRecord(step=step, seed=0, scalars=(1.0,), loss=1.0, learning_rate=0.5, tokens=9), seconds=1.0
            )
        return run

    @staticmethod
    def checkpoint(step: int) -> Checkpoint:
        return Checkpoint(step=step, state={"b": torch.full((3,), float(step)), "step": torch.tensor(float(step))})

    @staticmethod
    def loaded(run: StoredRun, stopping: EarlyStopping) -> int | None:
        found = run.load(stopping)
        assert found is None or found.state["b"].tolist() == [found.step] * 3
        return None if found is None else found.step

    def test_the_latest_is_gone_on_from(self, run: StoredRun) -> None:
        stopping = EarlyStopping(best_step=2)
        assert self.loaded(run, EarlyStopping()) is None
        for step in (2, 4, 6):
            run.save(self.checkpoint(step), stopping)
        assert self.loaded(run, stopping) == 6

    def test_what_a_killed_worker_was_writing_is_deleted(self, run: StoredRun, tmp_path: Path) -> None:
        run.save(self.checkpoint(2), EarlyStopping())
        [folder] = (tmp_path / "runs").iterdir()
        (folder / ".pocketllm-4.safetensors-ab_c1234").mkdir()
        (folder / ".pocketllm-4.safetensors-ab_c1234" / "4.safetensors").write_bytes(b"half")
        assert self.loaded(run, EarlyStopping()) == 2
        assert [path.name for path in folder.iterdir()] == ["2.safetensors"]

    def test_after_going_back_it_is_the_best(self, run: StoredRun) -> None:
        """The later ones were made at a rate that has been halved since."""
        stopping = EarlyStopping(best_step=2)
        for step in (2, 4, 6):
            run.save(self.checkpoint(step), stopping)
        stopping.go_back()
        run.go_back(stopping, step=6)
        assert self.loaded(run, stopping) == 2
        run.save(self.checkpoint(4), stopping)
        assert self.loaded(run, stopping) == 2  # the records up to 4 are not there

    def test_a_best_that_the_database_does_not_name_yet_is_gone_on_from(self, run: StoredRun) -> None:
        """It is checked again there."""
        run.save(self.checkpoint(2), EarlyStopping(best_step=2))
        run.save(self.checkpoint(4), EarlyStopping(best_step=4))
        assert self.loaded(run, EarlyStopping(best_step=2)) == 4
        assert self.loaded(run, EarlyStopping(best_step=4)) == 4

    def test_old_ones_are_cleared(self, run: StoredRun, tmp_path: Path) -> None:
        for step in (2, 4):
            run.save(self.checkpoint(step), EarlyStopping(best_step=step))
        run.save(self.checkpoint(6), EarlyStopping(best_step=4))
        run.save(self.checkpoint(8), EarlyStopping(best_step=4))
        (folder,) = (tmp_path / "runs").iterdir()
        assert sorted(file.name for file in folder.iterdir()) == ["4.safetensors", "8.safetensors"]

    def test_one_that_is_lost_is_named(self, run: StoredRun, tmp_path: Path) -> None:
        run.save(self.checkpoint(2), EarlyStopping(best_step=2))
        (file,) = (tmp_path / "runs").glob("*/*")
        file.write_bytes(b"half")
        with pytest.raises(ModelFileError, match=r" 2.safetensors cannot be read .* Request a new job\."):
            run.load(EarlyStopping(best_step=2))
        file.unlink()
        with pytest.raises(ModelFileError, match="cannot be read"):
            run.load(EarlyStopping(best_step=2))

    def test_going_back_says_so_in_an_event(self, run: StoredRun, store: Store) -> None:
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
