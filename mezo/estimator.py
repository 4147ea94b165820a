"""MeZO's estimator and update (Malladi et al., arXiv 2305.17333, Algorithm 1).

    z ~ signs(seed, step)                           generated again when needed, never stored
    L+ = loss(theta + eps z),  L- = loss(theta - eps z)
    g  = (L+ - L-) / (2 eps)                        a scalar: the slope of the loss along z
    theta <- theta - lr g z

With several probes a step (n-SPSA, Definition 2 there) each has its own z and g, and the update is their mean. Three or
more share the loss at theta, which halves the cost of a direction (`_shared`).
One difference from the paper's listing: it perturbs theta in place (+eps z, -2 eps z, +eps z), which in floating point
does not restore it exactly. Here the perturbed values are computed beside theta, which a probe leaves unchanged. A step
is recorded as one number per probe, and a run as the list of these numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import numpy as np

from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.method import StepRecord
from pocketllm.engine.noise import Direction, Kind, Perturbation
from pocketllm.engine.planning.memory_model import MIN_SHARED

#: Returns the loss (nats per token) at each perturbation of theta, on the same batch.
Losses = Callable[[Sequence[Perturbation]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Probes:
    """The measurements along a step's directions."""

    losses: Sequence[float]  #: L+, L- of each direction; or the loss at theta, then L+ of each
    scalars: tuple[float, ...]  #: the projected gradient g of each direction; float32, as in the step log
    loss: float  #: at theta; with one or two directions to second order in eps


class Trainable(Protocol):
    """The trained parameters: low-rank factors, or all of a model's weights."""

    def add_scaled(self, direction: Direction, distance: float) -> None:
        """theta <- theta + distance * z, in place."""


def directions(seed: int, step: int, probes: int, kind: Kind) -> list[Direction]:
    """The directions of a step."""
    return [Direction(seed=seed, step=step, probe=probe, kind=kind) for probe in range(probes)]


def probe(losses: Losses, along: Sequence[Direction], *, epsilon: float) -> Probes:
    """Measure the slope of the loss along each direction. Leaves theta unchanged.

    Raises TrainingDiverged when any of the losses is NaN or infinite: since the directions share a loss or an offset,
    all of the step's scalars would be.
    """
    probes = (_shared if len(along) >= MIN_SHARED else _both_sides)(losses, along, epsilon)
    broken = [loss for loss in probes.losses if not isfinite(loss)]
    if broken:
        raise TrainingDiverged(
            f"At step {along[0].step} the loss is {broken[0]} at {len(broken)} of {len(probes.losses)} points. "
            "Start again with a smaller step size."
        )
    return probes


def _both_sides(losses: Losses, along: Sequence[Direction], epsilon: float) -> Probes:
    """By central differences: two losses a direction."""
    found = losses([Perturbation(direction=z, distance=side * epsilon) for z in along for side in (1, -1)])
    slopes = [(plus - minus) / (2 * epsilon) for plus, minus in zip(found[::2], found[1::2], strict=True)]
    return Probes(losses=found, scalars=_as_float32(slopes), loss=sum(found) / len(found))


def _shared(losses: Losses, along: Sequence[Direction], epsilon: float) -> Probes:
    """By forward differences: one loss a direction, and one at theta for all.

    (L(theta + eps z) - L(theta)) / eps is z^T grad + eps/2 z^T H z + O(eps^2). The second term is a sum over all
    coordinates, so it is nearly the same for every z (its mean is eps/2 tr H). Subtracting the mean over the directions
    removes it, and one degree of freedom of the slopes.
    """
    theta = Perturbation(direction=along[0], distance=0.0)
    found = losses([theta, *(Perturbation(direction=z, distance=epsilon) for z in along)])
    slopes = [(loss - found[0]) / epsilon for loss in found[1:]]
    offset = sum(slopes) / len(slopes)
    return Probes(losses=found, scalars=_as_float32([slope - offset for slope in slopes]), loss=found[0])


def _as_float32(slopes: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(np.float32(slope)) for slope in slopes)


def update(theta: Trainable, record: StepRecord, kind: Kind = "rademacher") -> None:
    """theta <- theta - lr mean(g z), in place."""
    for z, g in zip(directions(record.seed, record.step, len(record.scalars), kind), record.scalars, strict=True):
        theta.add_scaled(z, -record.learning_rate * g / len(record.scalars))


def replay(theta: Trainable, records: Iterable[StepRecord], kind: Kind = "rademacher") -> None:
    """Repeat the recorded updates in place: the start becomes the end, bit for bit."""
    for record in records:
        update(theta, record, kind)
