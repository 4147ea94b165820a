"""Every call of the benches into pocketllm.backprop: exact gradients of an adapter's A and B, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bench.learn_curve import Curve
    from pocketllm.daemon.planning import Planned
    from pocketllm.mezo.batches import Buckets
    from pocketllm.mezo.model import LanguageModel

MISSING = "Exact gradients are not there yet (bench/exact.py)."


def train(model: LanguageModel, buckets: Buckets, curve: Curve, *, seed: int, batch: int) -> dict[str, Any]:
    """Train a fresh adapter as the worker does until the curve's time is over; the model uses it afterwards.

    Returns what there is to say of the run. Calls `curve.stepped()` after each step, takes the learning rate's schedule
    from `curve.remaining`, and ends with `curve.measure()`.
    """
    raise SystemExit(MISSING)


def planned(folder: Path, *, batch: int, tokens: int) -> Planned:
    """The worker's plan for such a step, with its default limit."""
    raise SystemExit(MISSING)


def prepare_step(folder: Path, *, batch: int, tokens: int) -> Callable[[], float]:
    """Open the model as the plan has it, and return what does one whole step on random tokens; see ours.prepare_step.

    A whole step: the loss and its gradients on `batch` blocks, and AdamW on A and B. Returns the loss.
    """
    raise SystemExit(MISSING)
