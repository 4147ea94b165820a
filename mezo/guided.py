"""The guided loop: look, probe now and then, step, and keep what is best on text that is not learned from.

The guide (guide.py) says which way, momentum smooths it (descent.py), and MeZO's two-sided probe says how far: along
the step u that is about to be taken, on the batch that comes next and has had no say in it,

    slope = (L(u) - L(-u)) / 2,    curvature = L(u) - 2 L(0) + L(-u),    best multiple = -slope / curvature,

for each group of maps by itself; later on only the slope, of the whole step. A direction that points uphill there is
not taken. All that a run's future depends on is in `State`, which is written down now and then; the steps since are
then done again, alike bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import cos, isfinite, pi
from typing import Protocol

import numpy as np
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, turn_at
from pocketllm.mezo.descent import Descent
from pocketllm.mezo.estimator import Point
from pocketllm.mezo.guide import Guidance
from pocketllm.mezo.loop import BatchLosses, Row
from pocketllm.mezo.patience import Patience, Verdict, Watch

#: How long a run goes on without a new best.
PATIENCE = Patience(looks=2, halvings=3)
#: How long a kill may throw a run back.
SAVE_SECONDS = 20.0
#: How many steps ahead a probe looks, to both sides.
PROBED = 2.0
#: What part of the best multiple is taken: momentum repeats a step in those that follow.
CAUTION = 0.25
#: Only the first steps' probes change lengths: later, when steps are short, a single batch says too little.
SETTLED = 40
#: How much a probe may change a length at once, and all probes together.
LEAST_CHANGE, MOST_CHANGE, MOST_MULTIPLE = 0.75, 4 / 3, 8.0


@dataclass(frozen=True, kw_only=True)
class GuidedPlan:
    """What determines a run, besides the model, the adapter it starts from, and the batches."""

    seed: int
    steps: int  #: at most
    groups: dict[str, tuple[str, ...]]  #: name -> paths of the maps that share a step length, which is probed
    lengths: dict[str, float]  #: name -> how far a number of B moves in a step before any probe
    warm_up: int = 10  #: steps in which the length grows to its full size: the momentum knows little yet
    least_share: float = 0.05  #: of the full length, at the end
    probe_every: int = 40  #: steps, for each batch that a probe is made on; at first four times as often
    probe_batches: int = 1  #: how many those are
    measure_every: int  #: steps between held-out measurements
    check_every: int = 20  #: steps between looks at the text that is not learned from
    patience: Patience = PATIENCE

    def probes_at(self, step: int) -> bool:
        """Whether a step's length is measured before it is taken."""
        often = max(1, self.probe_every // 4)
        return step % (often if step <= self.probe_every else self.probe_every * self.probe_batches) == 0

    def length_share(self, step: int, remaining: float) -> float:
        """The part of the full length that a step takes: a warm-up, and a cosine (arXiv 1608.03983) to the end."""
        falling = (1 - self.least_share) * (1 + cos(pi * (1 - remaining))) / 2 + self.least_share
        return min(1.0, step / self.warm_up) * falling


@dataclass(kw_only=True)
class State(Watch):
    """All that a run's future depends on, besides its plan."""

    b: dict[str, torch.Tensor]
    descent: Descent
    step: int = 0  #: done
    multiples: dict[str, float] = field(default_factory=dict)  #: of the groups' lengths, from probes


class Keeper(Protocol):
    """Where a run's state is written down."""

    def save(self, state: State) -> None:
        """Write the state down, whole or not at all."""

    def load(self) -> State | None:
        """What was saved last; None before."""

    def save_best(self, b: dict[str, torch.Tensor], step: int) -> None:
        """Write the best B so far down, which a step has made."""

    def load_best(self, step: int) -> dict[str, torch.Tensor]:
        """What was saved as the best that a step has made."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of."""

    look: Callable[[Blocks], Guidance]
    losses: BatchLosses  #: for probes
    check: Callable[[], float]  #: the loss on text that is not learned from, at theta
    batch: Callable[[int], Blocks]  #: by its number
    batches: int  #: how many there are
    keeper: Keeper


def train_guided(
    theta: Adapter,
    parts: Parts,
    plan: GuidedPlan,
    *,
    done: int,
    keep: Callable[[Row], None],
    measure: Callable[[int], None],
    remaining: Callable[[int], float],
    clock: Callable[[], float],
) -> State:
    """Train theta's B in place; at the end it is the best that was seen. Returns the run's last state.

    done: how many rows an earlier start of the run has kept; these steps are not kept again. keep(row): called with
    each new row. measure(step): called where the plan measures, and at the end. remaining(step): the part of the run
    that lies ahead of a step, from 1 to 0, where the run ends; one that is to be repeatable takes it from the step
    alone. clock: monotonic seconds; besides the rows' seconds they decide when the state is saved, and nothing else.
    Raises TrainingDiverged when the loss is no number to begin with.
    """
    state = _resumed(theta, parts.keeper)
    if state.step == 0:
        measure(0)
        _check(state, parts, plan)
    saved = clock()
    while state.step < plan.steps and not state.ended and remaining(state.step + 1) > 0:
        row = _step(state, parts, plan, remaining, clock)
        if row is not None and row.step > done:
            keep(row)
        if row is not None and row.step % plan.check_every == 0:
            _check(state, parts, plan)
        if row is not None and row.step % plan.measure_every == 0 and row.step < plan.steps and not state.ended:
            measure(row.step)
        if clock() - saved >= SAVE_SECONDS:
            parts.keeper.save(state)
            saved = clock()
    if state.step % plan.check_every:
        _check(state, parts, plan)
    _to_best(state, parts.keeper)
    measure(state.step)
    return state


def _resumed(theta: Adapter, keeper: Keeper) -> State:
    """The state that was saved last, with theta as it was then; or the first."""
    state = keeper.load()
    if state is None:
        return State(b=theta.b, descent=Descent.over(theta.b))
    for path, b in theta.b.items():
        b.copy_(state.b[path])
    state.b = theta.b
    return state


def _step(
    state: State, parts: Parts, plan: GuidedPlan, remaining: Callable[[int], float], clock: Callable[[], float]
) -> Row | None:
    """One step; None where the loss was no number and the run went back to its best instead."""
    started, step = clock(), state.step + 1
    batch = parts.batch(turn_at(parts.batches, step=step, seed=plan.seed))
    seen = parts.look(batch)
    if not isfinite(seen.loss):
        state.go_back(plan.patience)
        _start_from_best(state, parts.keeper, plan)
        return None
    state.descent.see(seen.gradients)
    share = plan.length_share(step, remaining(step))
    lengths = {name: share * length * state.multiples.get(name, 1.0) for name, length in plan.lengths.items()}
    if plan.probes_at(step):
        probe = _probe_groups if state.step < SETTLED else _probe_step
        probe(state, parts, plan, lengths)
    for name, paths in plan.groups.items():
        state.descent.move({path: state.b[path] for path in paths}, lengths[name])
    state.step = step
    return Row(
        step=step,
        seed=plan.seed,
        scalars=(float(np.float32(state.descent.slope(seen.gradients))),),
        loss=seen.loss,
        learning_rate=float(np.float32(share)),
        tokens=batch.tokens,
        seconds=clock() - started,
    )


def _probe_groups(state: State, parts: Parts, plan: GuidedPlan, lengths: dict[str, float]) -> None:
    """Measure each group's step on batches that had no say in it, and change the group's length towards the best."""
    directions = {name: state.descent.along(dict.fromkeys(paths, lengths[name])) for name, paths in plan.groups.items()}
    points = [Point(direction=next(iter(directions.values())), distance=0.0)]
    points += [Point(direction=z, distance=side * PROBED) for z in directions.values() for side in (1, -1)]
    here, *sides = _losses_on_next(state.step + 1, parts, plan, points)
    for name, plus, minus in zip(directions, sides[::2], sides[1::2], strict=True):
        slope, curvature = (plus - minus) / (2 * PROBED), (plus - 2 * here + minus) / PROBED**2
        if not slope < 0:  # uphill, or no number
            lengths[name], change = 0.0, LEAST_CHANGE
        else:
            best = -slope / curvature if curvature > 0 else float("inf")
            change = min(MOST_CHANGE, max(LEAST_CHANGE, CAUTION * best))
        before = state.multiples.get(name, 1.0)
        least = min(before, 1 / MOST_MULTIPLE)  # going back may have halved it below
        state.multiples[name] = min(MOST_MULTIPLE, max(least, before * change))


def _probe_step(state: State, parts: Parts, plan: GuidedPlan, lengths: dict[str, float]) -> None:
    """Measure the whole step on batches that had no say in it; it is not taken if it leads uphill."""
    step = state.descent.along({path: lengths[name] for name, paths in plan.groups.items() for path in paths})
    plus, minus = _losses_on_next(state.step + 1, parts, plan, [Point(direction=step, distance=d) for d in (1, -1)])
    if not plus < minus:
        lengths.update(dict.fromkeys(lengths, 0.0))


def _losses_on_next(step: int, parts: Parts, plan: GuidedPlan, points: Sequence[Point]) -> list[float]:
    """The mean loss at each point on the batches that come after this step's."""
    sums, targets = [0.0] * len(points), 0
    for ahead in range(1, plan.probe_batches + 1):
        batch = parts.batch(turn_at(parts.batches, step=step + ahead, seed=plan.seed))
        sums = [total + loss * batch.tokens for total, loss in zip(sums, parts.losses(points, batch), strict=True)]
        targets += batch.tokens
    return [total / targets for total in sums]


def _check(state: State, parts: Parts, plan: GuidedPlan) -> None:
    """Look at the text that is not learned from; without a new best for too long, go back to it."""
    verdict = state.look(state.step, parts.check(), plan.patience)
    if verdict is Verdict.NEW_BEST:
        parts.keeper.save_best(state.b, state.step)
    elif verdict is not Verdict.GO_ON:
        _start_from_best(state, parts.keeper, plan)


def _start_from_best(state: State, keeper: Keeper, plan: GuidedPlan) -> None:
    state.multiples = {name: state.multiples.get(name, 1.0) / 2 for name in plan.groups}
    _to_best(state, keeper)
    state.descent = Descent.over(state.b)


def _to_best(state: State, keeper: Keeper) -> None:
    for path, b in keeper.load_best(state.best_step).items():
        state.b[path].copy_(b)
