"""MeZO's estimator and update (Malladi et al., arXiv 2305.17333, Algorithm 1).

    z ~ signs(seed, step)                           drawn again whenever it is needed, never stored
    L+ = loss(theta + eps z),  L- = loss(theta - eps z)
    g  = (L+ - L-) / (2 eps)                        a scalar: the slope of the loss along z
    theta <- theta - lr g z

With several probes a step (n-SPSA, Definition 2 there) each has its own z and g, and the update is their mean. From
three on they share the loss at theta, which halves what a direction costs (`_shared`).
One difference from the paper's listing: it walks theta in place (+eps z, -2 eps z, +eps z), which in floating
point does not quite come back. Here both points are made beside theta, so that theta is exactly as before after
a probe. What is left of a step is one number a probe; a run is its list of numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import numpy as np

from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.method import StepRecord
from pocketllm.engine.params.perturbation import Perturbation
from pocketllm.mezo.noise import Direction, Kind

#: Gives the loss (nats per token) at each of several points in parameter space, all on the same batch.
Losses = Callable[[Sequence[Perturbation]], Sequence[float]]


#: From so many directions on they share one loss at theta.
MIN_SHARED = 3


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What one look in each of a step's directions saw."""

    losses: Sequence[float]  #: at each point: L+, L- of each direction; or at theta, and then L+ of each
    scalars: tuple[float, ...]  #: the projected gradient g of each direction; float32, as the step log keeps it
    loss: float  #: at theta itself, with one or two directions to second order in eps


class Trainable(Protocol):
    """What is trained: low-rank factors, or all of a model's weights."""

    def move(self, direction: Direction, distance: float) -> None:
        """theta <- theta + distance * z, in place."""


def directions(seed: int, step: int, probes: int, kind: Kind) -> list[Direction]:
    """The directions of a step."""
    return [Direction(seed=seed, step=step, probe=probe, kind=kind) for probe in range(probes)]


def probe(losses: Losses, along: Sequence[Direction], *, epsilon: float) -> Probes:
    """Measure the slope of the loss along each direction. Leaves theta untouched.

    Raises TrainingDiverged when the loss at any point is NaN or infinite: with a shared loss or offset it would make
    all of the step's scalars so.
    """
    seen = (_shared if len(along) >= MIN_SHARED else _both_sides)(losses, along, epsilon)
    broken = [loss for loss in seen.losses if not isfinite(loss)]
    if broken:
        raise TrainingDiverged(
            f"At step {along[0].step} the loss is {broken[0]} at {len(broken)} of {len(seen.losses)} points. "
            "Start again with a smaller step size."
        )
    return seen


def _both_sides(losses: Losses, along: Sequence[Direction], epsilon: float) -> Probes:
    """By central differences: two losses a direction."""
    seen = losses([Perturbation(direction=z, distance=side * epsilon) for z in along for side in (1, -1)])
    slopes = [(plus - minus) / (2 * epsilon) for plus, minus in zip(seen[::2], seen[1::2], strict=True)]
    return Probes(losses=seen, scalars=_as_float32(slopes), loss=sum(seen) / len(seen))


def _shared(losses: Losses, along: Sequence[Direction], epsilon: float) -> Probes:
    """By differences to the loss at theta: one loss a direction, and one for all.

    (L(theta + eps z) - L(theta)) / eps is z^T grad + eps/2 z^T H z + O(eps^2). The second term is a sum over all
    coordinates, hence nearly the same for every z (its mean is eps/2 tr H), and goes with the mean over the directions;
    of the slopes' own spread that takes one degree of freedom.
    """
    theta = Perturbation(direction=along[0], distance=0.0)
    seen = losses([theta, *(Perturbation(direction=z, distance=epsilon) for z in along)])
    slopes = [(loss - seen[0]) / epsilon for loss in seen[1:]]
    offset = sum(slopes) / len(slopes)
    return Probes(losses=seen, scalars=_as_float32([slope - offset for slope in slopes]), loss=seen[0])


def _as_float32(slopes: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(np.float32(slope)) for slope in slopes)


def update(theta: Trainable, record: StepRecord, kind: Kind = "rademacher") -> None:
    """theta <- theta - lr mean(g z), in place."""
    for z, g in zip(directions(record.seed, record.step, len(record.scalars), kind), record.scalars, strict=True):
        theta.move(z, -record.learning_rate * g / len(record.scalars))


def replay(theta: Trainable, records: Iterable[StepRecord], kind: Kind = "rademacher") -> None:
    """Repeat the recorded updates in place: the start becomes the end, bit for bit."""
    for record in records:
        update(theta, record, kind)
