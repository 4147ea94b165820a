"""MeZO's estimator and update (Malladi et al., arXiv 2305.17333, Algorithm 1).

    z ~ signs(seed, step)                           drawn again whenever it is needed, never stored
    L+ = loss(theta + eps z),  L- = loss(theta - eps z)
    g  = (L+ - L-) / (2 eps)                        a scalar: the slope of the loss along z
    theta <- theta - lr g z

With several probes a step (n-SPSA, Definition 2 there) each has its own z and g, and the update is their mean.
One difference from the paper's listing: it walks theta in place (+eps z, -2 eps z, +eps z), which in floating
point does not quite come back. Here both points are made beside theta, so that theta is exactly as before after
a probe. What is left of a step is one number a probe; a run is its list of numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pocketllm.mezo.noise import Direction, Kind, Z


@dataclass(frozen=True, kw_only=True)
class Point:
    """theta + distance * z."""

    direction: Z
    distance: float


#: Gives the loss (nats per token) at each of several points in parameter space, all on the same batch.
Losses = Callable[[Sequence[Point]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What one look in each of a step's directions saw."""

    losses: Sequence[float]  #: L+, L- of the first direction, of the second, ...
    epsilon: float

    @property
    def scalars(self) -> tuple[float, ...]:
        """The projected gradient g of each direction, by central difference; float32, as it is journaled."""
        pairs = zip(self.losses[::2], self.losses[1::2], strict=True)
        return tuple(float(np.float32((plus - minus) / (2 * self.epsilon))) for plus, minus in pairs)

    @property
    def loss(self) -> float:
        """The loss at theta itself, to second order in eps."""
        return sum(self.losses) / len(self.losses)


class Update(Protocol):
    """All that has to be kept of a step to do it again: a row of the journal."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    @property
    def step(self) -> int:
        """The step's number, from 1."""
        ...

    @property
    def scalars(self) -> Sequence[float]:
        """The projected gradient along each of the step's directions."""
        ...

    @property
    def learning_rate(self) -> float:
        """The step's learning rate."""
        ...


class Theta(Protocol):
    """What is trained: low-rank factors, or all of a model's weights."""

    def move(self, direction: Direction, distance: float) -> None:
        """theta <- theta + distance * z, in place."""
        ...


def directions(seed: int, step: int, probes: int, kind: Kind) -> list[Direction]:
    """The directions of a step."""
    return [Direction(seed=seed, step=step, probe=probe, kind=kind) for probe in range(probes)]


def probe(losses: Losses, along: Sequence[Direction], *, epsilon: float) -> Probes:
    """Measure the loss on both sides of theta along each direction. Leaves theta untouched."""
    points = [Point(direction=z, distance=side * epsilon) for z in along for side in (1, -1)]
    return Probes(losses=losses(points), epsilon=epsilon)


def update(theta: Theta, row: Update, kind: Kind = "rademacher") -> None:
    """theta <- theta - lr mean(g z), in place."""
    for z, g in zip(directions(row.seed, row.step, len(row.scalars), kind), row.scalars, strict=True):
        theta.move(z, -row.learning_rate * g / len(row.scalars))


def replay(theta: Theta, rows: Iterable[Update], kind: Kind = "rademacher") -> None:
    """Do again, in place, what the rows say: the start becomes the end, bit for bit."""
    for row in rows:
        update(theta, row, kind)
