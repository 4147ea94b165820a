"""Guarded runs of a tiny real model in a real database: killed at every point, they end like an undisturbed one."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pocketllm.daemon.guarding import StoredRun
from pocketllm.daemon.replaying import rebuild
from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import shuffled
from pocketllm.mezo.estimator import Theta
from pocketllm.mezo.full import FullWeights
from pocketllm.mezo.guarded import Checks, train_guarded
from pocketllm.mezo.loop import Plan, Row
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel
from pocketllm.mezo.patience import Patience, Watch
from pocketllm.mezo.weights import open_weights
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState
from tests.learning import equal, some_adapter, some_blocks
from tests.working import NOW, TRAINING, data_folder, finish, kill_at, notes, queue_job, start_worker

STEPS, EVERY = 10, 2
LEARNED, CHECKED = (some_blocks(9),), (some_blocks(3, 8),)


class Killed(Exception):
    """In place of a real kill."""


class CutRun(StoredRun):
    """A StoredRun whose process is killed in front of, or right behind, a number of writes."""

    def __init__(self, store: Store, job: str, to_start: Callable[[Theta], None], *, at: int, behind: bool) -> None:
        super().__init__(store, job, to_start)
        self.writes, self._at, self._behind = 0, at, behind

    def keep(self, row: Row) -> None:
        self._cut(lambda: super(CutRun, self).keep(row))

    def keep_watch(self, watch: Watch) -> None:
        self._cut(lambda: super(CutRun, self).keep_watch(watch))

    def go_back(self, watch: Watch, *, step: int) -> None:
        self._cut(lambda: super(CutRun, self).go_back(watch, step=step))

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

    native: NativeModel
    store: Store
    full: bool
    step_size: float
    models: dict[str, LanguageModel] = field(default_factory=dict)

    def queue(self) -> Job:
        return queue_job(self.store, steps=STEPS)

    def start(self, job: Job, *, at: int = -1, behind: bool = False) -> tuple[Adapter | FullWeights, int]:
        """What a worker does, with a model of its own; theta at the end, and how often it has written."""
        job = self.store.jobs.get(job.id)
        model = LanguageModel(self.native)
        theta: Adapter | FullWeights = model.full() if self.full else some_adapter(model)
        model.use(theta)

        def to_start(_: Theta) -> None:
            if isinstance(theta, FullWeights):
                theta.reload(open_weights(self.native.weights))
                return
            for path, b in some_adapter(model).b.items():
                theta.b[path].copy_(b)

        keeper = CutRun(self.store, job.id, to_start, at=at, behind=behind)
        plan = Plan(
            seed=4, steps=job.total_steps, batch=4, epsilon=1e-3, step_size=self.step_size, measure_every=100, probes=2
        )
        with torch.inference_mode():
            train_guarded(
                lambda points, batch: model.losses_at(points, batch, 100),
                theta,
                shuffled(LEARNED, size=4, seed=4),
                plan,
                checks=Checks(
                    loss=lambda: model.mean_loss(CHECKED),
                    every=EVERY,
                    patience=Patience(looks=2, halvings=2, divergence=0.1),
                ),
                keeper=keeper,
                measure=lambda _: None,
                clock=lambda: 0.0,
            )
        return theta, keeper.writes

    def told(self, job: Job) -> tuple[object, ...]:
        """All that is stored of a run."""
        rows = [(row.step, row.scalars, row.loss, row.learning_rate) for row in self.store.journal.steps(job.id)]
        job = self.store.jobs.get(job.id)
        events = [event.message for event in self.store.jobs.events(job.id)]
        return rows, job.watch, job.total_steps, events


def same(one: Adapter | FullWeights, other: Adapter | FullWeights) -> bool:
    if isinstance(one, Adapter) and isinstance(other, Adapter):
        return equal(one, other)
    assert isinstance(one, FullWeights)
    assert isinstance(other, FullWeights)
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(data_folder(tmp_path).database)


@pytest.mark.parametrize(
    ("full", "step_size", "back"),
    [(False, 1e-2, 0), (False, 0.2, 1), (False, 20.0, 3), (True, 0.3, 1)],
    ids=["learns", "goes back", "ends early", "full"],
)
def test_killed_at_any_point_it_ends_like_an_undisturbed_run_bit_for_bit(
    tiny_bf16: NativeModel, store: Store, full: bool, step_size: float, back: int
) -> None:
    runs = Runs(tiny_bf16, store, full, step_size)
    undisturbed = runs.queue()
    expected, writes = runs.start(undisturbed)
    watch = store.jobs.get(undisturbed.id).watch
    assert watch is not None
    assert watch["halvings"] >= back, watch
    for at in range(1, writes + 1):
        for behind in (False, True):
            job = runs.queue()
            with suppress(Killed):
                runs.start(job, at=at, behind=behind)
            theta, _ = runs.start(job)
            assert same(theta, expected), (at, behind)
            assert runs.told(job) == runs.told(undisturbed), (at, behind)
    store.close()


@pytest.mark.parametrize(
    ("settings", "back"),
    [({"step_size": 0.4}, 0), ({"mode": "full", "step_size": 0.05}, 2), ({"mode": "full", "step_size": 0.2}, 3)],
    ids=["to the best at the end", "full, with smaller steps", "full, to the start"],
)
def test_a_worker_goes_back_and_what_it_makes_can_be_replayed(
    tmp_path: Path, settings: dict[str, object], back: int
) -> None:
    folder = data_folder(tmp_path)
    store = Store.open(folder.database)
    store.texts.add(notes(), now=NOW)
    training = TRAINING.model_validate({**TRAINING.model_dump(), "epsilon": 1e-3, **settings})
    undisturbed, disturbed = (queue_job(store, training=training, steps=60, seed=5) for _ in range(2))
    finish(start_worker(folder, undisturbed))
    kill_at(store, start_worker(folder, disturbed), disturbed, 15)
    finish(start_worker(folder, disturbed))
    one, two = store.jobs.get(undisturbed.id), store.jobs.get(disturbed.id)
    assert one.state is two.state is JobState.SUCCEEDED
    assert one.watch is not None
    assert one.watch == two.watch
    assert one.watch["halvings"] >= back
    assert one.total_steps == two.total_steps == one.watch["best_step"]
    rows = [[(r.step, r.scalars, r.loss, r.learning_rate) for r in store.journal.steps(j.id)] for j in (one, two)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == one.total_steps
    for job in (one, two):
        assert rebuild(folder, store, job.id).identical
        kinds = [event.kind for event in store.jobs.events(job.id)]
        assert kinds.count("went back") == back
        assert kinds.count("ended early") == (one.total_steps < 60)
    store.close()
