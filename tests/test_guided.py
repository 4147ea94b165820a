"""The guided loop on plain functions: quadratics, one a batch, in place of a language model."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import nan

import pytest
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, turn_at
from pocketllm.mezo.descent import Descent
from pocketllm.mezo.estimator import Point
from pocketllm.mezo.guide import Guidance
from pocketllm.mezo.guided import (
    LEAST_CHANGE,
    MOST_CHANGE,
    PROBED,
    SETTLED,
    GuidedPlan,
    Keeper,
    Parts,
    State,
    train_guided,
)
from pocketllm.mezo.loop import Row
from pocketllm.mezo.patience import Patience

PLAN = GuidedPlan(
    seed=3,
    steps=80,
    groups={"head": ("lm_head",), "maps": ("one", "two")},
    lengths={"head": 0.05, "maps": 0.05},
    warm_up=3,
    probe_every=8,
    measure_every=30,
    check_every=5,
)
BATCHES = [Blocks(inputs=torch.tensor([[number]]), targets=torch.tensor([[number]])) for number in range(5)]
SHAPES = {"one": (4, 3), "lm_head": (6, 2), "two": (1, 5)}

Tensors = dict[str, torch.Tensor]
Clock = Callable[[], float]
Check = Callable[[Tensors], float]


#: Where each batch's loss is least.
GOALS = [
    {path: 1 + 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(i)) for path, shape in SHAPES.items()}
    for i in range(5)
]


def start() -> Adapter:
    zeros = {path: torch.zeros(shape) for path, shape in SHAPES.items()}
    return Adapter(base="x", alpha=1.0, a={path: torch.ones(shape[1], 2) for path, shape in SHAPES.items()}, b=zeros)


def loss(b: Tensors, blocks: Blocks) -> float:
    goals = GOALS[int(blocks.inputs)]
    return 1 + sum(float((value.double() - goals[path]).square().mean()) for path, value in b.items()) / 2


def mean_loss(b: Tensors) -> float:
    return sum(loss(b, blocks) for blocks in BATCHES) / len(BATCHES)


def rising(b: Tensors) -> float:
    """A check that every step from zero makes worse."""
    return 1 + sum(float(value.square().sum()) for value in b.values())


def look(b: Tensors, blocks: Blocks) -> Guidance:
    goals = GOALS[int(blocks.inputs)]
    gradients = {path: (value - goals[path]) / value.numel() for path, value in b.items()}
    return Guidance(loss=loss(b, blocks), gradients=gradients)


def losses(b: Tensors, points: Sequence[Point], blocks: Blocks) -> list[float]:
    found = []
    for point in points:
        moved = [b[path] + point.distance * point.direction.of(i, b[path].shape) for i, path in enumerate(b)]
        found.append(loss(dict(zip(b, moved, strict=True)), blocks))
    return found


@dataclass
class Memory:
    """A Keeper that copies, as a disk does."""

    state: State | None = None
    best: dict[int, Tensors] = field(default_factory=dict)  #: by the step that made it
    saves: list[int] = field(default_factory=list)  #: the steps after which the state was saved

    def save(self, state: State) -> None:
        self.state = deepcopy(state)
        self.saves.append(state.step)

    def load(self) -> State | None:
        return deepcopy(self.state)

    def save_best(self, b: Tensors, step: int) -> None:
        self.best[step] = deepcopy(b)

    def load_best(self, step: int) -> Tensors:
        return deepcopy(self.best[step])


def ticking(seconds: float) -> Clock:
    """A clock that goes on by so many seconds whenever it is read, three times a step."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds
        return now

    return clock


class Killed(Exception):
    """In place of a real kill."""


@dataclass
class Run:
    """One run, with functions of B in place of the model's, which may be started several times."""

    plan: GuidedPlan = PLAN
    look: Callable[[Tensors, Blocks], Guidance] = look
    losses: Callable[[Tensors, Sequence[Point], Blocks], Sequence[float]] = losses
    check: Check = mean_loss
    remaining: Callable[[int], float] | None = None
    clock: Clock = field(default_factory=lambda: ticking(0))
    begin: Callable[[], Adapter] = start
    keeper: Keeper = field(default_factory=Memory)
    theta: Adapter = field(default_factory=start)
    rows: list[Row] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)

    def go(self, *, until: int | None = None) -> State:
        """until: be killed right after keeping that step's row."""
        self.theta = theta = self.begin()

        def keep(row: Row) -> None:
            self.rows.append(row)
            if row.step == until:
                raise Killed

        parts = Parts(
            look=lambda blocks: self.look(theta.b, blocks),
            losses=lambda points, blocks: self.losses(theta.b, points, blocks),
            check=lambda: self.check(theta.b),
            batch=lambda number: BATCHES[number],
            batches=len(BATCHES),
            keeper=self.keeper,
        )
        return train_guided(
            theta,
            parts,
            self.plan,
            done=len(self.rows),
            keep=keep,
            measure=self.measured.append,
            remaining=self.remaining or (lambda step: 1 - (step - 1) / self.plan.steps),
            clock=self.clock,
        )


#: One number, that each step leads one further, until something halves that.
LINE = GuidedPlan(
    seed=0,
    steps=20,
    groups={"head": ("lm_head",)},
    lengths={"head": 1.0},
    warm_up=1,
    least_share=1.0,
    probe_every=1000,
    measure_every=20,
    check_every=1,
    patience=Patience(looks=1, halvings=3),
)


def number() -> Adapter:
    return Adapter(base="x", alpha=1.0, a={"lm_head": torch.ones(1, 1)}, b={"lm_head": torch.zeros(1, 1)})


def falling(b: Tensors, _: Blocks) -> Guidance:
    return Guidance(loss=100 - float(b["lm_head"]), gradients={"lm_head": torch.tensor([[-1.0]])})


def same(one: Tensors, other: Tensors) -> bool:
    return list(one) == list(other) and all(torch.equal(b, other[path]) for path, b in one.items())


def told(rows: Sequence[Row]) -> list[Row]:
    """What is the same whatever the clock says."""
    return [replace(row, seconds=0.0) for row in rows]


class TestConvex:
    def test_converges(self) -> None:
        run = Run()
        state = run.go()
        least = mean_loss({path: torch.stack([goals[path] for goals in GOALS]).mean(0) for path in SHAPES})
        assert mean_loss(start().b) > least + 1
        assert mean_loss(run.theta.b) < least + 0.02
        assert state.best_loss == mean_loss(run.theta.b)
        assert not state.ended
        assert [row.step for row in run.rows] == list(range(1, 81))
        assert run.measured == [0, 30, 60, 80]
        assert run.rows[0].loss == look(start().b, BATCHES[turn_at(5, step=1, seed=3)]).loss
        assert {(row.tokens, row.seed) for row in run.rows} == {(1, 3)}
        assert run.rows[0].scalars[0] < 0  # downhill
        assert run.rows[3].learning_rate == pytest.approx(PLAN.length_share(4, 1 - 3 / 80))

    def test_two_runs_are_the_same_and_another_seed_is_another(self) -> None:
        memory = Memory()
        one, two, other = Run(), Run(clock=ticking(10), keeper=memory), Run(plan=replace(PLAN, seed=4))
        for run in (one, two, other):
            run.go()
        assert same(one.theta.b, two.theta.b)
        assert told(one.rows) == told(two.rows)
        assert len(memory.saves) > 20
        assert not same(one.theta.b, other.theta.b)

    @pytest.mark.parametrize("seconds", [8.0, 3.0, 1.1])  # saves after each step, every third, every seventh
    @pytest.mark.parametrize("check", [mean_loss, rising])  # which lets the run go back several times, and end early
    def test_a_run_that_is_cut_ends_like_an_undisturbed_one_bit_for_bit(self, seconds: float, check: Check) -> None:
        undisturbed = Run(check=check)
        expected = undisturbed.go()
        for until in range(1, expected.step + 1, 4):
            run = Run(check=check, clock=ticking(seconds))
            with pytest.raises(Killed):
                run.go(until=until)
            state = run.go()
            assert (state.step, state.halvings, state.multiples) == (
                expected.step,
                expected.halvings,
                expected.multiples,
            )
            assert same(run.theta.b, undisturbed.theta.b), until
            assert told(run.rows) == told(undisturbed.rows), until

    def test_a_run_may_be_cut_again_and_again(self) -> None:
        undisturbed, run = Run(), Run(clock=ticking(3.0))
        undisturbed.go()
        for until in range(4, PLAN.steps, 4):  # further on each time than where it began
            with pytest.raises(Killed):
                run.go(until=until)
        run.go()
        assert same(run.theta.b, undisturbed.theta.b)
        assert told(run.rows) == told(undisturbed.rows)
        assert [step for step in run.measured if step] == [30, 60, 80]

    def test_ends_where_nothing_of_the_run_lies_ahead(self) -> None:
        run = Run(remaining=lambda step: 1 - (step - 1) / 7)
        assert run.go().step == 7
        assert run.measured == [0, 7]
        assert run.rows[-1].learning_rate == pytest.approx(PLAN.length_share(7, 1 / 7))


class TestProbe:
    """Each step is probed, as the first few are."""

    PLAN = replace(PLAN, steps=4, probe_every=4)

    def test_looks_to_both_sides_of_each_group_on_the_batch_that_comes_next(self) -> None:
        looked, probed, distances = list[int](), list[int](), list[list[float]]()

        def noted(b: Tensors, points: Sequence[Point], blocks: Blocks) -> list[float]:
            probed.append(int(blocks.inputs))
            distances.append([point.distance for point in points])
            for point, alone in zip(points[1:], ["lm_head", "lm_head", "one", "one"], strict=True):
                moving = [path for i, path in enumerate(b) if point.direction.of(i, b[path].shape).count_nonzero()]
                assert alone in moving
                assert ("lm_head" in moving) == (alone == "lm_head")
            return losses(b, points, blocks)

        def look_noted(b: Tensors, blocks: Blocks) -> Guidance:
            looked.append(int(blocks.inputs))
            return look(b, blocks)

        Run(plan=self.PLAN, look=look_noted, losses=noted).go()
        turns = [turn_at(5, step=step, seed=3) for step in range(1, 6)]
        assert looked == turns[:4]
        assert probed == turns[1:]
        assert distances == [[0.0, PROBED, -PROBED, PROBED, -PROBED]] * 4

    def test_a_group_whose_step_leads_uphill_is_not_moved(self) -> None:
        def lying(b: Tensors, blocks: Blocks) -> Guidance:
            seen = look(b, blocks)
            return replace(seen, gradients={**seen.gradients, "lm_head": -seen.gradients["lm_head"]})

        run = Run(plan=self.PLAN, look=lying)
        state = run.go()
        assert same({"lm_head": run.theta.b["lm_head"]}, {"lm_head": start().b["lm_head"]})
        assert all(run.theta.b[path].count_nonzero() for path in ("one", "two"))
        assert state.multiples["head"] == pytest.approx(LEAST_CHANGE**4)  # shortened by each probe
        assert state.multiples["maps"] == pytest.approx(MOST_CHANGE**4)  # the goal is far away

    def test_a_group_that_steps_too_far_is_shortened(self) -> None:
        """The maps' first step would already lead beyond the goal."""
        run = Run(plan=replace(self.PLAN, steps=1, warm_up=1, lengths={"head": 0.05, "maps": 3.0}))
        multiples = run.go().multiples
        assert multiples["maps"] == LEAST_CHANGE
        assert multiples["head"] == MOST_CHANGE

    def test_a_probe_that_shortens_does_not_lengthen_what_going_back_made_shorter_still(self) -> None:
        too_far = replace(self.PLAN, steps=2, lengths={"head": 500.0, "maps": 500.0})
        state = State(b=start().b, descent=Descent.over(start().b), step=1, multiples={"head": 1 / 32, "maps": 1 / 32})
        run = Run(plan=too_far, keeper=Memory(state=state, best={0: start().b}))
        multiples = run.go().multiples
        assert multiples["head"] <= 1 / 32
        assert multiples["maps"] <= 1 / 32

    @pytest.mark.parametrize("uphill", [False, True])
    def test_once_lengths_have_settled_only_a_whole_step_that_leads_uphill_is_not_taken(self, uphill: bool) -> None:
        distances = list[list[float]]()

        def noted(b: Tensors, points: Sequence[Point], blocks: Blocks) -> list[float]:
            distances.append([point.distance for point in points])
            return [-loss if uphill else loss for loss in losses(b, points, blocks)]

        state = State(b=start().b, descent=Descent.over(start().b), step=SETTLED)
        plan = replace(self.PLAN, steps=SETTLED + 1, probe_every=1, check_every=100)
        run = Run(plan=plan, losses=noted, keeper=Memory(state=state))
        assert run.go().multiples == {}
        assert distances == [[1, -1]]
        assert same(run.theta.b, start().b) == uphill

    def test_a_group_along_which_the_loss_is_no_number_does_not_go_further(self) -> None:
        def torn(b: Tensors, points: Sequence[Point], blocks: Blocks) -> list[float]:
            here, *sides = losses(b, points, blocks)
            return [here, nan, nan, *sides[2:]]

        run = Run(plan=replace(self.PLAN, steps=1), losses=torn)
        multiples = run.go().multiples
        assert multiples["head"] < 1
        assert multiples["maps"] > 1


class TestGoingBack:
    """From what stands a check no longer, to the best that was seen."""

    def test_a_check_that_only_rises_ends_the_run_with_what_it_began_with(self) -> None:
        run = Run(check=rising)
        state = run.go()
        assert same(run.theta.b, start().b)
        assert (state.ended, state.best_step, state.best_loss) == (True, 0, 1.0)
        # Twice without a new best, and that with the length halved three times.
        assert state.step == 4 * PLAN.patience.looks * PLAN.check_every == len(run.rows)
        assert run.measured == [0, 30, 40]

    def test_goes_on_from_the_best_with_half_the_length(self) -> None:
        run = Run(
            plan=replace(LINE, steps=5),
            look=falling,
            begin=number,
            check=lambda b: abs(float(b["lm_head"]) - 2.5),
        )
        state = run.go()
        # 1, 2, 3 (no better than 2, so back), 2.5, 3 (back).
        assert [row.loss for row in run.rows] == pytest.approx([100, 99, 98, 98, 97.5], abs=1e-4)
        assert float(run.theta.b["lm_head"]) == pytest.approx(2.5, abs=1e-4)
        assert (state.best_step, state.halvings, state.multiples) == (4, 2, {"head": 0.25})

    def test_what_was_best_before_the_end_is_left(self) -> None:
        """Looks are taken at 0 and 5, and one at the end, at 7."""
        plan = replace(LINE, steps=7, check_every=5, patience=Patience(looks=9, halvings=3))
        for goal_at, left in ((0, 0), (4, 5), (9, 7)):
            run = Run(plan=plan, look=falling, begin=number)
            run.check = lambda b, goal_at=goal_at: abs(float(b["lm_head"]) - goal_at)  # type: ignore[misc]
            run.go()
            assert float(run.theta.b["lm_head"]) == pytest.approx(left, abs=1e-4)

    def test_a_loss_that_is_no_number_leads_back_to_the_best_and_halves(self) -> None:
        def torn(b: Tensors, blocks: Blocks) -> Guidance:
            seen = falling(b, blocks)
            return replace(seen, loss=nan) if float(b["lm_head"]) > 2.6 else seen

        run = Run(
            plan=replace(LINE, patience=Patience(looks=9, halvings=3)),
            look=torn,
            begin=number,
            check=lambda b: torn(b, BATCHES[0]).loss,
        )
        state = run.go()
        # 1, 2, 3 (no number: back), 2.5, 3 (back), 2.75 (back), 2.625 (back, for the fourth time).
        assert [row.loss for row in run.rows] == pytest.approx([100, 99, 98, 98, 97.5, 97.5, 97.5], abs=1e-4)
        assert [row.step for row in run.rows] == list(range(1, 8))
        assert float(run.theta.b["lm_head"]) == pytest.approx(2.5, abs=1e-4)
        assert (state.ended, state.halvings, state.best_step) == (True, 4, 4)
        assert state.multiples == {"head": 1 / 16}
