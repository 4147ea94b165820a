"""The training loop: batch, probe, one journal row, update. It has no state that the rows do not hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.estimator import Losses, Point, Theta, Update, directions, probe, replay, update
from pocketllm.mezo.noise import Kind


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What determines a run, besides the model, the adapter it starts from, and the blocks."""

    seed: int
    steps: int
    batch: int  #: blocks a step
    epsilon: float  #: how far the two points of a probe are from theta
    step_size: float  #: how far theta moves, a coordinate, along one typical direction
    measure_every: int  #: steps between held-out measurements
    probes: int = 1  #: directions looked along a step
    noise: Kind = "rademacher"

    def measures_at(self, step: int) -> bool:
        """Whether the held-out loss is measured after this step (0: before the first)."""
        return step % self.measure_every == 0 or step == self.steps


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished step: all that has to be kept of it."""

    step: int  #: from 1
    seed: int
    scalars: tuple[float, ...]  #: the projected gradient along each direction, float32
    loss: float  #: nats per token
    learning_rate: float  #: float32
    tokens: int  #: predicted tokens, counted once though both signs saw them
    seconds: float


class StepSize:
    """The learning rate of each step: normalised by the probes' own spread, falling to zero at the end.

    A probe's scalar is the gradient's length times luck, so its root mean square tells how steep the loss is;
    dividing by it makes the step size mean the same for every model and text. Each of a step's directions is gone
    along as far as if it were the only one. Follows from the scalars alone.
    """

    MEMORY = 0.98  # of the running mean square
    CLIP = 3.0  # root mean squares: a probe beyond this is an accident and moves theta no further
    FALLING = 0.5  # the last part of the run, in which the rate falls; until then it is as long as theta can bear

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._square: float | None = None

    def learning_rate(self, remaining: float, scalars: Sequence[float]) -> float:
        """The learning rate of a step, whose scalars are taken into account. Call once a step, in order.

        remaining: the part of the run that lies ahead, from 1 to 0.
        """
        seen = sum(scalar**2 for scalar in scalars) / len(scalars)
        old = seen if self._square is None else self._square
        self._square = self.MEMORY * old + (1 - self.MEMORY) * seen
        rms = sqrt(self._square)
        if rms == 0:
            return 0.0
        clipped = min(1.0, self.CLIP * rms / sqrt(seen)) if seen else 1.0
        share = min(1.0, remaining / self.FALLING)
        return float(np.float32(self._plan.step_size * len(scalars) * share * clipped / rms))


#: The batch's loss at each of several points: how a step looks at the model.
BatchLosses = Callable[[Sequence[Point], Blocks], Sequence[float]]


def train(
    losses: BatchLosses,
    theta: Theta,
    batch: Callable[[int], Blocks],
    plan: Plan,
    *,
    done: Sequence[Update],
    keep: Callable[[Row], None],
    measure: Callable[[int], None],
    clock: Callable[[], float],
    remaining: Callable[[int], float] | None = None,
    look: Callable[[int], bool] = lambda _step: True,
) -> None:
    """Train theta in place until `plan.steps` steps are done.

    batch: the batch of a step, the same whenever it is asked for. done: rows of earlier steps, from the first;
    replayed before going on. keep(row): called with each new row before the update that it describes, so that what
    has been kept is never ahead of a lost update. measure(step): called where the plan measures, with theta as after
    that step; also where `done` ends, since a killed run may not have come to it. clock: monotonic seconds.
    remaining(step): the part of the run that lies ahead of a step, from 1 to 0, where the run ends; by the steps, if
    it is None. look(step): called after every step and where `done` ends, before `measure`; where it says False, the
    run ends at once (mezo/guarded.py).
    Raises TrainingDiverged when a loss is NaN or infinite, before anything of that step is kept.
    """
    remaining = remaining or (lambda step: 1 - (step - 1) / plan.steps)
    size = StepSize(plan)
    for row in done:
        size.learning_rate(remaining(row.step), row.scalars)
    replay(theta, done, plan.noise)
    if not look(len(done)):
        return
    if plan.measures_at(len(done)):
        measure(len(done))

    for step in range(len(done) + 1, plan.steps + 1):
        if remaining(step) <= 0:
            return
        started = clock()
        blocks = batch(step)
        along = directions(plan.seed, step, plan.probes, plan.noise)
        seen = probe(_on(blocks, losses), along, epsilon=plan.epsilon)
        row = Row(
            step=step,
            seed=plan.seed,
            scalars=seen.scalars,
            loss=seen.loss,
            learning_rate=size.learning_rate(remaining(step), seen.scalars),
            tokens=blocks.tokens,
            seconds=clock() - started,
        )
        keep(row)
        update(theta, row, plan.noise)
        if not look(step):
            return
        if plan.measures_at(step):
            measure(step)


def _on(batch: Blocks, losses: BatchLosses) -> Losses:
    return lambda points: losses(points, batch)
