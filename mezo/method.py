"""MeZO as the trainer runs it: probe, update, record. All of its state is in the records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.method import StepRecord
from pocketllm.engine.noise import Kind, Perturbation
from pocketllm.mezo.estimator import Trainable, directions, probe, replay, update

#: Returns the batch's loss (nats per token) at each perturbation of theta.
BatchLosses = Callable[[Sequence[Perturbation], Batch], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class MeZOPlan:
    """A run's parameters, besides the model, the initial theta and the batches."""

    seed: int
    epsilon: float  #: size of the perturbation, per coordinate
    step_size: float  #: size of the update along one typical direction, per coordinate
    probes: int = 1  #: directions a step
    noise: Kind = "rademacher"


class StepSize:
    """The learning rate of each step: normalised by the running RMS of the scalars, falling to zero at the end.

    A scalar is the gradient's length times a random factor, so its RMS measures how steep the loss is. Dividing by it
    makes one step size fit every model and text. Each of a step's directions gets a full step.
    """

    MEMORY = 0.98  # decay of the running mean square
    CLIP = 3.0  # an update is clipped where its scalars exceed this many RMS
    FALLING = 0.5  # the rate falls linearly over this last part of the run

    def __init__(self) -> None:
        self._square: float | None = None

    def observe(self, scalars: Sequence[float]) -> float:
        """Update the running mean square with a step's scalars, each step once and in order; returns theirs."""
        square = sum(scalar**2 for scalar in scalars) / len(scalars)
        old = square if self._square is None else self._square
        self._square = self.MEMORY * old + (1 - self.MEMORY) * square
        return square

    def learning_rate(self, step_size: float, remaining: float, scalars: Sequence[float]) -> float:
        """Observe a step's scalars, and return its learning rate."""
        square = self.observe(scalars)
        rms = sqrt(self._square or 0.0)
        if rms == 0:
            return 0.0
        clipped = min(1.0, self.CLIP * rms / sqrt(square)) if square else 1.0
        share = min(1.0, remaining / self.FALLING)
        return float(np.float32(step_size * len(scalars) * share * clipped / rms))


class MeZO:
    """pocketllm.engine.method.Method: zeroth-order steps (arXiv 2305.17333, Algorithm 1)."""

    def __init__(self, losses: BatchLosses, theta: Trainable, plan: MeZOPlan, to_start: Callable[[], None]) -> None:
        """to_start: resets theta, in place, to the run's start."""
        self._losses, self._theta, self._plan, self._to_start = losses, theta, plan, to_start
        self._size = StepSize()

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord:
        """See Method."""
        plan = self._plan
        along = directions(plan.seed, number, plan.probes, plan.noise)
        probes = probe(lambda points: self._losses(points, batch), along, epsilon=plan.epsilon)
        record = StepRecord(
            step=number,
            seed=plan.seed,
            scalars=probes.scalars,
            loss=probes.loss,
            learning_rate=self._size.learning_rate(plan.step_size * share, remaining, probes.scalars),
            tokens=batch.tokens,
        )
        update(self._theta, record, plan.noise)
        return record

    def state(self) -> dict[str, torch.Tensor]:
        """Empty: the records are enough."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
        """See Method; replays the records."""
        self._to_start()
        self._size = StepSize()
        for record in records:
            self._size.observe(record.scalars)
        replay(self._theta, records, self._plan.noise)
