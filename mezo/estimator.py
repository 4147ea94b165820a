"""MeZO's estimator and update (Malladi et al., arXiv 2305.17333, Algorithm 1).

    z ~ signs(seed, step)                           drawn again whenever it is needed, never stored
    L+ = loss(theta + eps z),  L- = loss(theta - eps z)
    g  = (L+ - L-) / (2 eps)                        a scalar: the slope of the loss along z
    theta <- theta - lr g z

One difference from the paper's listing: it walks theta in place (+eps z, -2 eps z, +eps z), which in floating
point does not quite come back. Here theta is small (low-rank factors), so the two points are made beside it and
theta is exactly as before after a probe. What is left of a step is one number; a run is its list of numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pocketllm.mezo.noise import rademacher

#: The trained tensors, in a fixed order: the place in it is the tensor's number in the noise.
Parameters = Sequence[torch.Tensor]

#: Gives the loss (nats per token) at each of several points in parameter space, all on the same batch.
Losses = Callable[[Sequence[Parameters]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one look in direction z saw."""

    loss_plus: float
    loss_minus: float
    epsilon: float

    @property
    def scalar(self) -> float:
        """The projected gradient g, by central difference."""
        return (self.loss_plus - self.loss_minus) / (2 * self.epsilon)

    @property
    def loss(self) -> float:
        """The loss at theta itself, to second order in eps."""
        return (self.loss_plus + self.loss_minus) / 2


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
    def scalar(self) -> float:
        """The projected gradient g."""
        ...

    @property
    def learning_rate(self) -> float:
        """The step's learning rate."""
        ...


def moved(theta: Parameters, seed: int, step: int, distance: float) -> list[torch.Tensor]:
    """theta + distance * z, as new tensors."""
    return [torch.add(p, rademacher(seed, step, i, p.shape), alpha=distance) for i, p in enumerate(theta)]


def probe(losses: Losses, theta: Parameters, *, seed: int, step: int, epsilon: float) -> Probe:
    """Measure the loss on both sides of theta along z(seed, step). Leaves theta untouched."""
    plus, minus = losses([moved(theta, seed, step, epsilon), moved(theta, seed, step, -epsilon)])
    return Probe(loss_plus=plus, loss_minus=minus, epsilon=epsilon)


def update(theta: Parameters, row: Update) -> None:
    """theta <- theta - lr g z, in place."""
    for i, p in enumerate(theta):
        p.add_(rademacher(row.seed, row.step, i, p.shape), alpha=-row.learning_rate * row.scalar)


def replay(theta: Parameters, rows: Iterable[Update]) -> None:
    """Do again, in place, what the rows say: the start becomes the end, bit for bit."""
    for row in rows:
        update(theta, row)
