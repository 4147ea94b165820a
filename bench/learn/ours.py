"""Our methods in bench.learn, as the worker runs them.

python -m bench.learn.ours METHOD --folder DIR --blocks FILE --seconds 120 --seed 0

METHOD is `mezo`, `exact`, `prompt` (no training, but some of the text in the prompt) or `inference` (for its memory).
Prints one line of JSON: the held-out loss over time, from when the model is loaded; what a method measures and chooses
before its first step counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.child import memory_of, write_line
from bench.learn import text as learn_text
from bench.learn.curve import Curve
from bench.ours import exact_method, load_model, planned, rehearsal_of, rehearsed
from pocketllm.daemon.process_memory import give_back_free_memory
from pocketllm.daemon.scheduling.planning import CHEAP_PROBES, ENOUGH_POSITIONS, SHARED_BATCH
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training.checkpoints import Checkpoint, StoredRun
from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.daemon.training.run import PCA_BLOCKS
from pocketllm.daemon.training.trainer import Run, train
from pocketllm.daemon.training.validation_split import split, validation_interval
from pocketllm.engine.data.batches import Batch, Batches, shuffled
from pocketllm.engine.formats.safetensors_io import StoredTensors, write_tensors
from pocketllm.engine.method import Method, StepRecord
from pocketllm.engine.params.activation_pca import adapter_along_activations
from pocketllm.engine.planning.memory_model import JobPlan, exact_passes, points_of
from pocketllm.engine.planning.shapes import read_shapes
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.method import MeZO, MeZOPlan

#: More than any run makes.
_STEPS = 10**6


def open_model(folder: Path) -> LanguageModel:
    """The model as the worker opens it."""
    return load_model(folder, torch.get_num_threads())


class Scratch(StoredRun):
    """A StoredRun of an undisturbed run: checkpoints in a folder, the rest in memory."""

    def __init__(self, folder: Path, curve: Curve) -> None:
        self._folder, self._curve = folder, curve
        self._records: list[StepRecord] = []
        self.back: list[tuple[int, int]] = []  #: from which step to which the run has gone back

    def records(self) -> list[StepRecord]:
        """See StoredRun."""
        return list(self._records)

    def append(self, record: StepRecord, *, seconds: float) -> None:
        """See StoredRun."""
        self._records.append(record)
        self._curve.stepped()

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


def teach(
    model: LanguageModel, method: Method, buckets: Batches, curve: Curve, *, seed: int, batch: int, points: float
) -> dict[str, Any]:
    """Train as the worker does until the curve's time is over; what there is to say of it.

    points: forward passes that a step takes as long as.
    """
    training, validation = split(buckets)
    every = validation_interval(training, validation, batch=batch, points=points)
    with tempfile.TemporaryDirectory() as folder:
        store = Scratch(Path(folder), curve)
        stopping = train(
            method,
            store,
            Run(
                steps=_STEPS,
                checkpoint_bytes=10**18,  # of so many steps there would be few checks
                batch=shuffled(training, size=batch, seed=seed),
                remaining=lambda _step: curve.remaining,
                validation_loss=lambda: model.mean_loss(validation),
                validated_on="",
                check_every=every,
                measure=lambda _step: None,
                measure_every=_STEPS,
                clock=time.monotonic,
            ),
        )
    curve.measure()
    return {"check_every": every, "back": store.back, **asdict(stopping)}


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
    return teach(model, method, buckets, curve, seed=seed, batch=batch, points=points_of(probes))


@torch.no_grad()
def teach_exact(
    model: LanguageModel, plan: JobPlan, buckets: Batches, curve: Curve, *, seed: int, samples: Batch | None = None
) -> dict[str, Any]:
    """Learn by exact gradients, with samples of the base model as the worker has them; the model keeps the adapter."""
    method = exact_method(model, plan, seed=seed, samples=samples)
    batch = plan.batch - (0 if samples is None else rehearsed(plan))
    points = exact_passes(read_shapes(model.folder), plan)
    return teach(model, method, buckets, curve, seed=seed, batch=batch, points=points)


@torch.no_grad()
def inference(options: argparse.Namespace) -> dict[str, Any]:
    """The losses of a batch of the training text, a few times: for its memory."""
    model = open_model(options.folder)
    batch = learn_text.load(options.blocks).training[slice(0, options.batch)]
    for _ in range(3):
        model.block_losses(batch, options.batch)
    return {"peak_rss_bytes": memory_of().get("VmHWM")}


@torch.no_grad()
def prompt(options: argparse.Namespace) -> dict[str, Any]:
    """The base model, with each number of tokens of the training text in front of the held-out blocks."""
    model = open_model(options.folder)
    division = learn_text.load(options.blocks)
    base = model.mean_loss([division.held_out])
    won = {tokens: base - _prompted(model, division, tokens, options.seed) for tokens in options.prompts}
    return {"loss": base, "prompts": won, "reduction": won[max(won)]}


def mezo(options: argparse.Namespace) -> dict[str, Any]:
    """Our MeZO, with as many blocks a step as the worker takes."""
    model = open_model(options.folder)
    division = learn_text.load(options.blocks)
    curve = Curve(options.seconds, lambda: model.mean_loss([division.held_out]))
    sample = division.training[slice(0, PCA_BLOCKS)]
    found = teach_mezo(model, (division.training,), sample, curve, seed=options.seed, batch=SHARED_BATCH)
    return curve.report() | found


@torch.no_grad()
def exact(options: argparse.Namespace) -> dict[str, Any]:
    """Exact gradients, and what the longest prompt adds to the adapter that they have taught."""
    division = learn_text.load(options.blocks)
    tokens = division.training.inputs.shape[1]
    plan = planned(options.folder, mode="exact", batch=options.batch, tokens=tokens).plan
    model = load_model(options.folder, plan.replicas)
    samples, samples_seconds = timed_rehearsal(model)
    give_back_free_memory()  # as the worker does then
    curve = Curve(options.seconds, lambda: model.mean_loss([division.held_out]))
    found = teach_exact(model, plan, (division.training,), curve, seed=options.seed, samples=samples)
    report = curve.report() | found  # with the peak before the prompt, which takes more
    prompted = _prompted(model, division, max(options.prompts), options.seed)
    return report | {"prompted_reduction": curve.points[0][2] - prompted, "samples_seconds": samples_seconds}


def timed_rehearsal(model: LanguageModel) -> tuple[Batch, float]:
    """The base model's samples, and the seconds of drawing them: once a model, so off the clock of a run."""
    began = time.perf_counter()
    return rehearsal_of(model), time.perf_counter() - began


def _prompted(model: LanguageModel, division: learn_text.Division, tokens: int, seed: int) -> float:
    return model.mean_loss([learn_text.with_prompt(division, tokens, seed)])


METHODS = {"inference": inference, "prompt": prompt, "mezo": mezo, "exact": exact}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one method."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn.ours", description="Let our engine learn a text.")
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--folder", type=Path, required=True, help="a model folder")
    parser.add_argument("--blocks", type=Path, required=True, help="from bench.learn.text")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, nargs="+", default=[256, 960], help="tokens in front of each block")
    options = parser.parse_args(arguments)
    write_line(METHODS[options.method](options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
