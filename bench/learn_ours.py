"""Our methods in bench.learn, as the worker runs them.

python -m bench.learn_ours METHOD --folder DIR --blocks FILE --seconds 120 --seed 0

METHOD is `mezo`, `exact`, `prompt` (no training, but some of the text in the prompt) or `inference` (for its memory).
Prints one line of JSON: the held-out loss over time, from when the model is loaded; what a method measures and chooses
before its first step counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import bench.exact
from bench import learn_text
from bench.child import memory_of, write_line
from bench.learn_curve import Curve
from pocketllm.daemon.planning import CHEAP_PROBES, ENOUGH_POSITIONS, SHARED_BATCH
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training_run import DIRECTION_BLOCKS
from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, Buckets, shuffled
from pocketllm.mezo.budget import points_of
from pocketllm.mezo.directions import adapter_along_activations
from pocketllm.mezo.estimator import Theta
from pocketllm.mezo.guarded import Checks, train_guarded
from pocketllm.mezo.kept_aside import divide, steps_between_checks
from pocketllm.mezo.loop import Plan, Row
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import open_native
from pocketllm.mezo.patience import Watch

#: More than any run makes.
_STEPS = 10**6


def open_model(folder: Path) -> LanguageModel:
    """The model as the worker opens it."""
    return LanguageModel(open_native(folder), release_pages=True, lanes=torch.get_num_threads())


class Remembered:
    """pocketllm.mezo.guarded.Keeper without a disk, of a run that starts from a fresh adapter, whose B is zero."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        self._rows: list[Row] = []
        self.back: list[tuple[int, int]] = []  #: from which step to which the run has gone back

    def rows(self) -> list[Row]:
        """See Keeper."""
        return list(self._rows)

    def keep(self, row: Row) -> None:
        """See Keeper."""
        self._rows.append(row)
        self._curve.stepped()

    def watch(self) -> Watch | None:
        """See Keeper: no run here has begun before."""
        return None

    def keep_watch(self, watch: Watch) -> None:
        """See Keeper."""

    def go_back(self, watch: Watch, *, step: int) -> None:
        """See Keeper."""
        del self._rows[watch.best_step :]
        if step > watch.best_step:
            self.back.append((step, watch.best_step))

    def to_start(self, theta: Theta) -> None:
        """See Keeper."""
        assert isinstance(theta, Adapter)
        for b in theta.b.values():
            b.zero_()


def teach_mezo(
    model: LanguageModel, buckets: Buckets, looked_at: Blocks, curve: Curve, *, seed: int, batch: int
) -> dict[str, Any]:
    """Learn along random directions until the curve's time is over; what there is to say of it.

    looked_at: blocks that A is taken from.
    """
    settings, rows_at_once = TrainingSettings(), ENOUGH_POSITIONS // looked_at.inputs.shape[1]
    adapter = adapter_along_activations(
        model, (looked_at,), targets=settings.targets, rank=settings.rank, seed=seed, rows_at_once=rows_at_once
    )
    model.use(adapter)
    learned, checked = divide(buckets)
    plan = Plan(
        seed=seed,
        steps=_STEPS,
        batch=batch,
        epsilon=settings.epsilon,
        step_size=settings.step_size,
        measure_every=_STEPS,
        probes=CHEAP_PROBES[0],
    )
    checks = Checks(
        loss=lambda: model.mean_loss(checked),
        every=steps_between_checks(learned, checked, batch=batch, points=points_of(plan.probes)),
    )
    keeper = Remembered(curve)
    watch = train_guarded(
        lambda points, blocks: model.losses_at(points, blocks, rows_at_once),
        adapter,
        shuffled(learned, size=batch, seed=seed),
        plan,
        checks=checks,
        keeper=keeper,
        measure=lambda _step: None,
        clock=time.monotonic,
        remaining=lambda _step: curve.remaining,
    )
    curve.measure()
    return {"check_every": checks.every, "back": keeper.back, **watch.to_json()}


@torch.inference_mode()
def inference(options: argparse.Namespace) -> dict[str, Any]:
    """The losses of a batch of the training text, a few times: for its memory."""
    model = open_model(options.folder)
    batch = learn_text.load(options.blocks).training[slice(0, options.batch)]
    for _ in range(3):
        model.block_losses(batch, options.batch)
    return {"peak_rss_bytes": memory_of().get("VmHWM")}


@torch.inference_mode()
def prompt(options: argparse.Namespace) -> dict[str, Any]:
    """The base model, with each number of tokens of the training text in front of the held-out blocks."""
    model = open_model(options.folder)
    division = learn_text.load(options.blocks)
    base = model.mean_loss([division.held_out])
    won = {tokens: base - _prompted(model, division, tokens, options.seed) for tokens in options.prompts}
    return {"loss": base, "prompts": won, "reduction": won[max(won)]}


@torch.inference_mode()
def mezo(options: argparse.Namespace) -> dict[str, Any]:
    """Our MeZO, with as many blocks a step as the worker takes."""
    model = open_model(options.folder)
    division = learn_text.load(options.blocks)
    curve = Curve(options.seconds, lambda: model.mean_loss([division.held_out]))
    looked_at = division.training[slice(0, DIRECTION_BLOCKS)]
    found = teach_mezo(model, (division.training,), looked_at, curve, seed=options.seed, batch=SHARED_BATCH)
    return curve.report() | found


def exact(options: argparse.Namespace) -> dict[str, Any]:
    """Exact gradients, and what the longest prompt adds to the adapter that they have taught."""
    model = open_model(options.folder)
    division = learn_text.load(options.blocks)
    curve = Curve(options.seconds, torch.inference_mode()(lambda: model.mean_loss([division.held_out])))
    found = bench.exact.train(model, (division.training,), curve, seed=options.seed, batch=options.batch)
    report = curve.report() | found  # with the peak before the prompts, which take more
    with torch.inference_mode():
        prompted = _prompted(model, division, max(options.prompts), options.seed)
    return report | {"prompted_reduction": curve.points[0][2] - prompted}


def _prompted(model: LanguageModel, division: learn_text.Division, tokens: int, seed: int) -> float:
    return model.mean_loss([learn_text.with_prompt(division, tokens, seed)])


METHODS = {"inference": inference, "prompt": prompt, "mezo": mezo, "exact": exact}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one method."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn_ours", description="Let our engine learn a text.")
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--folder", type=Path, required=True, help="a native model")
    parser.add_argument("--blocks", type=Path, required=True, help="from bench.learn_text")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, nargs="+", default=[256, 960], help="tokens in front of each block")
    options = parser.parse_args(arguments)
    write_line(METHODS[options.method](options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
