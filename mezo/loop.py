"""The training loop: batch, probe, one journal row, update. It has no state that the rows do not hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, batch_at
from pocketllm.mezo.errors import TrainingDiverged
from pocketllm.mezo.estimator import Update, probe, replay, update
from pocketllm.mezo.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What determines a run, besides the model, the adapter it starts from, and the blocks."""

    seed: int
    steps: int
    batch: int  #: blocks a step
    epsilon: float  #: how far the two points of a probe are from theta
    step_size: float  #: how far theta moves, a coordinate, in a typical first step
    measure_every: int  #: steps between held-out measurements

    def measures_at(self, step: int) -> bool:
        """Whether the held-out loss is measured after this step (0: before the first)."""
        return step % self.measure_every == 0 or step == self.steps


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished step: all that has to be kept of it."""

    step: int  #: from 1
    seed: int
    scalar: float  #: the projected gradient
    loss: float  #: nats per token
    learning_rate: float
    tokens: int  #: predicted tokens, counted once though both signs saw them
    seconds: float


class StepSize:
    """The learning rate of each step: normalised by the probes' own spread, falling linearly to zero.

    A probe's scalar is the gradient's length times luck, so its root mean square tells how steep the loss is;
    dividing by it makes the step size mean the same for every model and text. Follows from the scalars alone.
    """

    MEMORY = 0.98  # of the running mean square
    CLIP = 3.0  # root mean squares: a probe beyond this is an accident and moves theta no further

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._square: float | None = None

    def learning_rate(self, step: int, scalar: float) -> float:
        """The learning rate of this step, whose scalar is taken into account. Call once a step, in order."""
        old = scalar**2 if self._square is None else self._square
        self._square = self.MEMORY * old + (1 - self.MEMORY) * scalar**2
        rms: float = self._square**0.5
        if rms == 0:
            return 0.0
        remaining = 1 - (step - 1) / self._plan.steps
        clipped = min(1.0, self.CLIP * rms / abs(scalar)) if scalar else 1.0
        return self._plan.step_size * remaining * clipped / rms


def train(
    model: LanguageModel,
    adapter: Adapter,
    blocks: Blocks,
    plan: Plan,
    *,
    done: Sequence[Update],
    keep: Callable[[Row], None],
    measure: Callable[[int], None],
    clock: Callable[[], float],
) -> None:
    """Train the adapter in place until `plan.steps` steps are done.

    done: rows of earlier steps, from the first; replayed before going on. keep(row): called with each new row
    before the update that it describes, so that what has been kept is never ahead of a lost update.
    measure(step): called where the plan measures, with theta as after that step; also where `done` ends,
    since a killed run may not have come to it. clock: monotonic seconds.
    Raises TrainingDiverged when the loss is no number any more.
    """
    theta = adapter.parameters()
    size = StepSize(plan)
    for row in done:
        size.learning_rate(row.step, row.scalar)
    replay(theta, done)
    if plan.measures_at(len(done)):
        measure(len(done))

    for step in range(len(done) + 1, plan.steps + 1):
        started = clock()
        batch = batch_at(blocks, step=step, size=plan.batch, seed=plan.seed)
        seen = probe(
            partial(model.losses_at, adapter, batch),
            theta,
            seed=plan.seed,
            step=step,
            epsilon=plan.epsilon,
        )
        if not isfinite(seen.scalar):
            raise TrainingDiverged(f"The loss at step {step} is {seen.loss}. Start again with a smaller step size.")
        row = Row(
            step=step,
            seed=plan.seed,
            scalar=seen.scalar,
            loss=seen.loss,
            learning_rate=size.learning_rate(step, seen.scalar),
            tokens=batch.tokens,
            seconds=clock() - started,
        )
        keep(row)
        update(theta, row)
        if plan.measures_at(step):
            measure(step)
