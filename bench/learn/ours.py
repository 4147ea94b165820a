"""Our methods in bench.learn, as the worker runs them.

`learn` is one run: `mezo`, `exact`, `prompt` (no training, but some of the text in the prompt) or `inference` (for its
memory). The held-out loss is told over time, from when the model is loaded; what a method measures and chooses before
its first step counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.common.child import memory_of
from bench.common.ours import exact_method, load_model, planned, rehearsal_of, rehearsed
from bench.learn import text as learn_text
from bench.learn.curve import Curve
from pocketllm.daemon.process_memory import give_back_free_memory
from pocketllm.daemon.scheduling.planning import CHEAP_PROBES, ENOUGH_POSITIONS, SHARED_BATCH
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training.checkpoints import Checkpoint, StoredRun
from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.daemon.training.run import PCA_BLOCKS
from pocketllm.daemon.training.trainer import CHECKPOINT_BYTES, Run, train
from pocketllm.daemon.training.validation_split import split, validation_interval
from pocketllm.engine.data.batches import Batch, Batches, shuffled
from pocketllm.engine.formats.safetensors_io import StoredTensors, write_tensors
from pocketllm.engine.method import Method, StepRecord
from pocketllm.engine.planning.memory_model import JobPlan, exact_passes, points_of
from pocketllm.engine.planning.shapes import read_shapes
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.activation_pca import adapter_along_activations
from pocketllm.mezo.method import MeZO, MeZOPlan

#: More than any run makes.
_STEPS = 10**6


class Scratch(StoredRun):
    """A StoredRun of an undisturbed run: checkpoints in a folder, the rest in memory."""

    def __init__(self, folder: Path, stepped: Callable[[], None]) -> None:
        """stepped: called after each step."""
        self._folder, self._stepped = folder, stepped
        self._records: list[StepRecord] = []
        self.back: list[tuple[int, int]] = []  #: from which step to which the run has gone back

    def records(self) -> list[StepRecord]:
        """See StoredRun."""
        return list(self._records)

    def append(self, record: StepRecord, *, seconds: float) -> None:
        """See StoredRun."""
        self._records.append(record)
        self._stepped()

    def early_stopping(self) -> EarlyStopping | None:
        """See StoredRun: no run here has begun before."""
        return None

    def keep(self, stopping: EarlyStopping) -> None:
        """See StoredRun."""

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        """See StoredRun."""
        del self._records[stopping.best_step :]
        if step > stopping.best_step:
            self.back.append((step, stopping.best_step))

    def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
        """See StoredRun."""
        name = "best" if checkpoint.step == stopping.best_step else "latest"
        write_tensors(self._folder / name, checkpoint.state)

    def load(self, stopping: EarlyStopping) -> Checkpoint | None:
        """See StoredRun: without a kill, only the best is ever gone on from."""
        file = self._folder / "best"
        if not stopping.best_step or not file.exists():
            return None
        return Checkpoint(step=stopping.best_step, state=StoredTensors(file))


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What became of a run."""

    check_every: int  #: steps
    back: Sequence[tuple[int, int]]  #: from which step to which it has gone back
    stopping: EarlyStopping


def teach(
    model: LanguageModel,
    method: Method,
    buckets: Batches,
    *,
    seed: int,
    batch: int,
    points: float,
    steps: int,
    stepped: Callable[[], None] = lambda: None,
    remaining: Callable[[], float] | None = None,
    checkpoint_bytes: int = CHECKPOINT_BYTES,
) -> Taught:
    """Train as the worker does.

    points: forward passes that a step takes as long as. stepped: called after each step. remaining: of the run's time,
    by default of its steps.
    """
    training, validation = split(buckets)
    every = validation_interval(training, validation, batch=batch, points=points)
    with tempfile.TemporaryDirectory() as folder:
        store = Scratch(Path(folder), stepped)
        stopping = train(
            method,
            store,
            Run(
                steps=steps,
                checkpoint_bytes=checkpoint_bytes,
                batch=shuffled(training, size=batch, seed=seed),
                remaining=lambda step: remaining() if remaining else 1 - (step - 1) / steps,
                validation_loss=lambda: model.mean_loss(validation),
                validated_on="",
                check_every=every,
                measure=lambda _step: None,
                measure_every=steps,
                clock=time.monotonic,
            ),
        )
    return Taught(check_every=every, back=store.back, stopping=stopping)


def _until(curve: Curve, model: LanguageModel, method: Method, buckets: Batches, **how: Any) -> dict[str, Any]:
    """Train until the curve's time is over; what there is to say of it. how: see `teach`."""
    how |= {"checkpoint_bytes": 10**18}  # of so many steps there would be few checks
    taught = teach(
        model, method, buckets, steps=_STEPS, stepped=curve.stepped, remaining=lambda: curve.remaining, **how
    )
    curve.measure()
    return {"check_every": taught.check_every, "back": taught.back, **asdict(taught.stopping)}


@torch.no_grad()
def teach_mezo(
    model: LanguageModel, buckets: Batches, sample: Batch, curve: Curve, *, seed: int, batch: int
) -> dict[str, Any]:
    """Learn along random directions; looked_at: blocks that A is taken from."""
    settings, micro_batch = TrainingSettings(), ENOUGH_POSITIONS // sample.inputs.shape[1]
    adapter = adapter_along_activations(
        model, (sample,), targets=settings.targets, rank=settings.rank, seed=seed, micro_batch=micro_batch
    )
    model.set_parameters(adapter)

    def to_start() -> None:
        for b in adapter.b.values():
            b.zero_()

    probes = CHEAP_PROBES[0]
    plan = MeZOPlan(seed=seed, epsilon=settings.epsilon, step_size=settings.step_size, probes=probes)
    method = MeZO(lambda points, blocks: model.losses_at(points, blocks, micro_batch), adapter, plan, to_start)
    return _until(curve, model, method, buckets, seed=seed, batch=batch, points=points_of(probes))


@torch.no_grad()
def teach_exact(
    model: LanguageModel, plan: JobPlan, buckets: Batches, curve: Curve, *, seed: int, samples: Batch | None = None
) -> dict[str, Any]:
    """Learn by exact gradients, with samples of the base model as the worker has them; the model keeps the adapter."""
    method = exact_method(model, plan, seed=seed, samples=samples)
    batch = plan.batch - (0 if samples is None else rehearsed(plan))
    points = exact_passes(read_shapes(model.folder), plan)
    return _until(curve, model, method, buckets, seed=seed, batch=batch, points=points)


@torch.no_grad()
def inference(folder: str, blocks: str, *, batch: int, **unused: Any) -> dict[str, Any]:
    """The losses of a batch of the training text, a few times: for its memory."""
    model = load_model(Path(folder))
    some = learn_text.load(blocks).training[slice(0, batch)]
    for _ in range(3):
        model.block_losses(some, batch)
    return {"peak_rss_bytes": memory_of().get("VmHWM")}


@torch.no_grad()
def prompt(folder: str, blocks: str, *, seed: int, prompts: Sequence[int], **_: Any) -> dict[str, Any]:
    """The base model, with each number of tokens of the training text in front of the held-out blocks."""
    model = load_model(Path(folder))
    division = learn_text.load(blocks)
    base = model.mean_loss([division.held_out])
    won = {tokens: base - _prompted(model, division, tokens, seed) for tokens in prompts}
    return {"loss": base, "prompts": won, "reduction": won[max(won)]}


def mezo(folder: str, blocks: str, *, seconds: float, seed: int, **_: Any) -> dict[str, Any]:
    """Our MeZO, with as many blocks a step as the worker takes."""
    model = load_model(Path(folder))
    division = learn_text.load(blocks)
    curve = Curve(seconds, lambda: model.mean_loss([division.held_out]))
    sample = division.training[slice(0, PCA_BLOCKS)]
    found = teach_mezo(model, (division.training,), sample, curve, seed=seed, batch=SHARED_BATCH)
    return curve.report() | found


@torch.no_grad()
def exact(folder: str, blocks: str, *, batch: int, seconds: float, seed: int, prompts: Sequence[int]) -> dict[str, Any]:
    """Exact gradients, and what the longest prompt adds to the adapter that they have taught."""
    division = learn_text.load(blocks)
    tokens = division.training.inputs.shape[1]
    plan = planned(Path(folder), mode="exact", batch=batch, tokens=tokens).plan
    model = load_model(Path(folder))
    samples = rehearsal_of(model)
    give_back_free_memory()  # as the worker does then
    curve = Curve(seconds, lambda: model.mean_loss([division.held_out]))
    found = teach_exact(model, plan, (division.training,), curve, seed=seed, samples=samples)
    report = curve.report() | found  # with the peak before the prompt, which takes more
    prompted = _prompted(model, division, max(prompts), seed)
    return report | {"prompted_reduction": curve.points[0][2] - prompted}


def _prompted(model: LanguageModel, division: learn_text.Division, tokens: int, seed: int) -> float:
    return model.mean_loss([learn_text.with_prompt(division, tokens, seed)])


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "inference": inference,
    "prompt": prompt,
    "mezo": mezo,
    "exact": exact,
}


def learn(method: str, **work: Any) -> dict[str, Any]:
    """One run. work: a model folder, the file of blocks, `batch`, `seconds`, `seed`, and the lengths of `prompts`."""
    return METHODS[method](**work)
