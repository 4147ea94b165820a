"""MeZO as the trainer runs it: batch, probe, update. It has no state that its records do not hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.method import StepRecord
from pocketllm.engine.params.perturbation import Perturbation
from pocketllm.mezo.estimator import Trainable, directions, probe, replay, update
from pocketllm.mezo.noise import Kind

#: The batch's loss at each of several points.
BatchLosses = Callable[[Sequence[Perturbation], Batch], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class MeZOPlan:
    """What determines a run, besides the model, what it starts from, and the batches."""

    seed: int
    epsilon: float  #: how far the points of a probe are from theta
    step_size: float  #: how far theta moves, a coordinate, along one typical direction
    probes: int = 1  #: directions a step
    noise: Kind = "rademacher"


class StepSize:
    """The learning rate of each step: normalised by the probes' own spread, falling to zero at the end.

    A probe's scalar is the gradient's length times luck, so its root mean square tells how steep the loss is;
    dividing by it makes the step size mean the same for every model and text. Each of a step's directions is gone
    along as far as if it were the only one.
    """

    MEMORY = 0.98  # of the running mean square
    CLIP = 3.0  # root mean squares: a probe beyond this is an accident and moves theta no further
    FALLING = 0.5  # the last part of the run, in which the rate falls; until then it is as long as theta can bear

    def __init__(self) -> None:
        self._square: float | None = None

    def see(self, scalars: Sequence[float]) -> float:
        """Take a step's scalars into account, each step once and in order; returns their mean square."""
        square = sum(scalar**2 for scalar in scalars) / len(scalars)
        old = square if self._square is None else self._square
        self._square = self.MEMORY * old + (1 - self.MEMORY) * square
        return square

    def learning_rate(self, step_size: float, remaining: float, scalars: Sequence[float]) -> float:
        """The learning rate of a step, whose scalars are taken into account."""
        square = self.see(scalars)
        rms = sqrt(self._square or 0.0)
        if rms == 0:
            return 0.0
        clipped = min(1.0, self.CLIP * rms / sqrt(square)) if square else 1.0
        share = min(1.0, remaining / self.FALLING)
        return float(np.float32(step_size * len(scalars) * share * clipped / rms))


class MeZO:
    """pocketllm.engine.method.Method: zeroth-order steps (arXiv 2305.17333, Algorithm 1)."""

    def __init__(self, losses: BatchLosses, theta: Trainable, plan: MeZOPlan, to_start: Callable[[], None]) -> None:
        """to_start: makes of theta, in place, what the run starts from."""
        self._losses, self._theta, self._plan, self._to_start = losses, theta, plan, to_start
        self._size = StepSize()

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord:
        """See Method."""
        plan = self._plan
        along = directions(plan.seed, number, plan.probes, plan.noise)
        seen = probe(lambda points: self._losses(points, batch), along, epsilon=plan.epsilon)
        record = StepRecord(
            step=number,
            seed=plan.seed,
            scalars=seen.scalars,
            loss=seen.loss,
            learning_rate=self._size.learning_rate(plan.step_size * share, remaining, seen.scalars),
            tokens=batch.tokens,
        )
        update(self._theta, record, plan.noise)
        return record

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing: a run is its records."""
        return {}

    def restore(self, state: dict[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
        """See Method: the records are replayed."""
        self._to_start()
        self._size = StepSize()
        for record in records:
            self._size.see(record.scalars)
        replay(self._theta, records, self._plan.noise)
