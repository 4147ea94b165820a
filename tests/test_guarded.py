"""The guarded loop on plain functions of B, in place of a language model."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import nan

import pytest
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.errors import TrainingDiverged
from pocketllm.mezo.estimator import Point, Theta, replay
from pocketllm.mezo.guarded import Checks, train_guarded
from pocketllm.mezo.loop import Plan, Row
from pocketllm.mezo.patience import Patience, Watch

PLAN = Plan(seed=1, steps=30, batch=1, epsilon=1e-2, step_size=0.1, measure_every=10)
PATIENCE = Patience(looks=2, halvings=2, divergence=1.0)
BLOCK = Blocks(inputs=torch.zeros(1, 1, dtype=torch.int64), targets=torch.zeros(1, 1, dtype=torch.int64))
#: Where the loss is least.
GOAL = 0.5

Function = Callable[[torch.Tensor], float]


def start() -> Adapter:
    return Adapter(base="x", alpha=1.0, a={"one": torch.ones(2, 3)}, b={"one": torch.zeros(4, 2)})


def distance(b: torch.Tensor) -> float:
    return float((b.double() - GOAL).square().mean())


def rising(b: torch.Tensor) -> float:
    """A check that everything but the start makes worse."""
    return 1 + 0.01 * float(b.double().abs().sum())


@dataclass
class Memory:
    """A Keeper that copies, as a disk does."""

    kept: list[Row] = field(default_factory=list)
    kept_watch: Watch | None = None
    went_back: list[tuple[int, int]] = field(default_factory=list)  #: from which step, to which
    forgotten: list[list[Row]] = field(default_factory=list)

    def rows(self) -> list[Row]:
        return list(self.kept)

    def keep(self, row: Row) -> None:
        assert row.step == len(self.kept) + 1
        self.kept.append(row)

    def watch(self) -> Watch | None:
        return deepcopy(self.kept_watch)

    def keep_watch(self, watch: Watch) -> None:
        self.kept_watch = deepcopy(watch)

    def go_back(self, watch: Watch, *, step: int) -> None:
        assert step == len(self.kept)
        self.forgotten.append(self.kept[watch.best_step :])
        del self.kept[watch.best_step :]
        self.keep_watch(watch)
        self.went_back.append((step, watch.best_step))

    def to_start(self, theta: Theta) -> None:
        assert isinstance(theta, Adapter)
        for b in theta.b.values():
            b.zero_()


def run(
    memory: Memory,
    *,
    loss: Function = distance,
    check: Function = distance,
    plan: Plan = PLAN,
    every: int = 3,
    remaining: Callable[[int], float] | None = None,
) -> tuple[torch.Tensor, Watch, list[int]]:
    """B at the end, the watch, and where was measured."""
    theta, measured = start(), list[int]()
    (b,) = theta.b.values()

    def losses(points: Sequence[Point], _: Blocks) -> list[float]:
        return [loss(b + point.distance * point.direction.of(0, b.shape)) for point in points]

    watch = train_guarded(
        losses,
        theta,
        lambda _step: BLOCK,
        plan,
        checks=Checks(loss=lambda: check(b), every=every, patience=PATIENCE),
        keeper=memory,
        measure=measured.append,
        clock=lambda: 0.0,
        remaining=remaining,
    )
    again = start()
    replay(again, memory.rows(), plan.noise)
    assert torch.equal(b, again.b["one"]), "theta is what the start and the rows make"
    assert watch.best_step == len(memory.kept)
    return b, watch, measured


def test_a_run_that_goes_well_is_left_alone() -> None:
    memory = Memory()
    b, watch, measured = run(memory)
    assert distance(b) < 0.1 * distance(torch.zeros(4, 2))
    assert (len(memory.kept), watch.halvings, watch.best_step) == (30, 0, 30)
    assert set(measured) == {0, 10, 20, 30}
    assert memory.went_back == [(30, 30)]


def test_what_brings_nothing_ends_with_the_best_and_no_row() -> None:
    memory = Memory()
    b, watch, measured = run(memory, check=rising)
    assert not b.count_nonzero()
    assert (watch.ended, watch.halvings, watch.best_step, memory.kept) == (True, 3, 0, [])
    assert memory.went_back == [(6, 0)] * 3
    assert measured[-1] == 0


def test_goes_back_along_the_same_directions_with_half_the_step() -> None:
    memory = Memory()
    run(memory, check=rising)
    firsts = [rows[0] for rows in memory.forgotten]
    assert [row.step for row in firsts] == [1, 1, 1]
    assert {row.scalars for row in firsts} == {firsts[0].scalars}
    rate = firsts[0].learning_rate
    assert [row.learning_rate for row in firsts] == pytest.approx([rate, rate / 2, rate / 4])


def test_a_loss_that_is_no_number_leads_back_and_halves() -> None:
    """Beyond a distance from the start the loss is torn."""

    def torn(b: torch.Tensor) -> float:
        return nan if float(b.abs().max()) > 0.25 else distance(b)

    memory = Memory()
    b, watch, _ = run(memory, loss=torn, check=torn)
    assert watch.halvings > 0
    assert distance(b) < distance(torch.zeros(4, 2))
    assert all(torch.isfinite(torch.tensor(row.loss)) for row in memory.kept)


def test_where_only_some_points_have_no_loss_it_goes_back_too() -> None:
    """At theta itself there is one, and the check finds nothing wrong."""
    edge = 0.25

    def torn(b: torch.Tensor) -> float:
        return nan if float(b.abs().max()) > edge else distance(b)

    memory = Memory()
    b, watch, _ = run(memory, loss=torn, check=distance, plan=replace(PLAN, probes=15, epsilon=0.02, step_size=0.01))
    assert watch.halvings > 0
    assert float(b.abs().max()) <= edge
    assert watch.best_step > 0
    assert all(torch.isfinite(torch.tensor(row.scalars)).all() for row in memory.kept)


def test_a_check_far_above_the_best_leads_back_at_once() -> None:
    memory = Memory()
    run(memory, check=lambda b: 1 + 1e6 * float(b.abs().sum()))
    assert memory.went_back == [(3, 0)] * 3  # not after a second look


def test_without_a_best_it_has_diverged() -> None:
    memory = Memory()
    with pytest.raises(TrainingDiverged):
        run(memory, check=lambda _: nan)
    assert memory.kept_watch is None
    assert memory.kept == []


def test_the_best_is_left_where_the_last_step_is_not() -> None:
    memory = Memory()
    _, watch, measured = run(memory, check=lambda b: abs(float(b.abs().sum()) - 2.5), every=14)
    assert memory.went_back == [(30, watch.best_step)]
    assert watch.best_step in (14, 28)
    assert measured[-1] == watch.best_step


def test_where_nothing_of_the_run_lies_ahead_it_is_looked_at_once_more() -> None:
    memory = Memory()
    _, watch, measured = run(memory, remaining=lambda step: 1 - (step - 1) / 7)
    assert (watch.best_step, watch.ended, measured[-1]) == (7, True, 7)


def test_a_run_that_has_ended_is_only_made_again() -> None:
    memory = Memory()
    expected, watch, _ = run(memory)
    rows = memory.rows()
    b, again, measured = run(memory)
    assert torch.equal(b, expected)
    assert (again, memory.rows(), measured) == (watch, rows, [30])


def test_rows_of_a_version_without_a_watch_are_gone_on_from() -> None:
    memory, old = Memory(), Memory()
    run(old, plan=replace(PLAN, steps=7))
    memory.kept = [replace(row, learning_rate=0.01) for row in old.kept]
    _, watch, _ = run(memory)
    assert len(memory.kept) == watch.best_step == 30
