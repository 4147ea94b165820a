from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, shuffled
from pocketllm.mezo.directions import adapter_along_activations
from pocketllm.mezo.errors import TrainingDiverged
from pocketllm.mezo.estimator import Point
from pocketllm.mezo.loop import BatchLosses, Plan, Row, StepSize, train
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel, open_native
from tests.learning import ALL_ROWS, TARGETS, equal, mean_loss, some_blocks
from tests.tiny_models import tiny_native

PLAN = Plan(seed=0, steps=12, batch=4, epsilon=1e-2, step_size=1e-2, measure_every=5)
BUCKETS = (some_blocks(), some_blocks(5, 8))


def fresh(model: LanguageModel) -> Adapter:
    return adapter_along_activations(model, (some_blocks(8),), targets=TARGETS, rank=4, seed=0, rows_at_once=ALL_ROWS)


def left(step: int) -> float:
    """The part of the run that lies ahead of a step."""
    return 1 - (step - 1) / PLAN.steps


def ticking() -> float:
    """A clock that stands still: nothing may depend on it."""
    return 0.0


def losses_of(model: LanguageModel) -> BatchLosses:
    return lambda points, batch: model.losses_at(points, batch, ALL_ROWS)


def run(
    model: LanguageModel, plan: Plan, *, until: int | None = None, done: list[Row] | None = None
) -> tuple[Adapter, list[Row], list[int]]:
    """Train; `until`: be killed right after keeping that step's row, before its update."""
    adapter, rows, measured = fresh(model), list(done or []), list[int]()

    def keep(row: Row) -> None:
        rows.append(row)
        if row.step == until:
            raise InterruptedError

    model.use(adapter)
    with torch.inference_mode(), suppress(InterruptedError):
        train(
            losses_of(model),
            adapter,
            shuffled(BUCKETS, size=plan.batch, seed=plan.seed),
            plan,
            done=list(rows),
            keep=keep,
            measure=measured.append,
            clock=ticking,
        )
    return adapter, rows, measured


@pytest.mark.parametrize(
    "plan",
    [PLAN, replace(PLAN, probes=3), replace(PLAN, probes=2, noise="gaussian", seed=2**64 - 1)],
    ids=["signs", "probes", "gaussian"],
)
def test_an_interrupted_run_ends_like_an_undisturbed_one_bit_for_bit(tiny_bf16: NativeModel, plan: Plan) -> None:
    model = LanguageModel(tiny_bf16)
    undisturbed, rows, _ = run(model, plan)
    assert {len(row.scalars) for row in rows} == {plan.probes}
    for step in range(1, plan.steps + 1):
        _, kept, _ = run(model, plan, until=step)
        resumed, again, _ = run(model, plan, done=kept)
        assert equal(resumed, undisturbed), step
        assert again == rows, step


def test_the_number_of_probes_and_the_noise_make_other_runs(tiny_bf16: NativeModel) -> None:
    model = LanguageModel(tiny_bf16)
    plans = [PLAN, replace(PLAN, probes=2), replace(PLAN, noise="gaussian"), replace(PLAN, seed=1)]
    ends = [run(model, plan)[0] for plan in plans]
    assert not any(equal(a, b) for i, a in enumerate(ends) for b in ends[:i])


def test_measures_at_both_ends_and_between(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    assert run(model, PLAN)[2] == [0, 5, 10, 12]
    _, kept, measured = run(model, PLAN, until=5)
    assert measured == [0]  # killed before it came to it
    assert run(model, PLAN, done=kept)[2] == [5, 10, 12]


@pytest.mark.parametrize(("probes", "noise", "steps"), [(1, "rademacher", 150), (2, "gaussian", 100)])
def test_loss_falls(tmp_path: Path, probes: int, noise: str, steps: int) -> None:
    model = LanguageModel(open_native(tiny_native(tmp_path, dtype="float32")))
    plan = Plan(seed=1, steps=steps, batch=8, epsilon=1e-2, step_size=1e-2, measure_every=steps)
    plan = replace(plan, probes=probes, noise=noise)  # type: ignore[arg-type]
    adapter, _, _ = run(model, plan)
    with torch.inference_mode():
        model.use(None)
        before = mean_loss(model, some_blocks())
        model.use(adapter)
        after = mean_loss(model, some_blocks())
    assert after < before - 0.04


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_kept(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    adapter = fresh(model)
    next(iter(adapter.a.values())).fill_(float("nan"))
    model.use(adapter)
    kept: list[Row] = []
    with torch.inference_mode(), pytest.raises(TrainingDiverged, match="step 1"):
        train(
            losses_of(model),
            adapter,
            shuffled(BUCKETS, size=PLAN.batch, seed=PLAN.seed),
            PLAN,
            done=[],
            keep=kept.append,
            measure=lambda _: None,
            clock=ticking,
        )
    assert not kept
    assert not any(b.count_nonzero() for b in adapter.b.values())


def test_a_loss_that_is_no_number_at_one_of_many_points_leaves_rows_and_theta_as_they_were(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    plan, look = replace(PLAN, probes=15), losses_of(model)
    whole, rows, _ = run(model, plan, until=2)  # with the first step's update
    adapter, kept = fresh(model), list[Row]()
    model.use(adapter)

    def torn(points: Sequence[Point], batch: Blocks) -> Sequence[float]:
        losses = list(look(points, batch))
        if kept:
            losses[9] = float("nan")
        return losses

    with torch.inference_mode(), pytest.raises(TrainingDiverged, match="step 2"):
        train(
            torn,
            adapter,
            shuffled(BUCKETS, size=plan.batch, seed=plan.seed),
            plan,
            done=[],
            keep=kept.append,
            measure=lambda _: None,
            clock=ticking,
        )
    assert kept == rows[:1]
    assert equal(adapter, whole)


def test_a_row_says_what_its_step_saw(tiny: NativeModel) -> None:
    """Seconds come from the clock that was handed in, tokens are counted once, and no row waits for its update."""
    theta, seen, clock = fresh(LanguageModel(tiny)), list[Blocks](), iter(range(100))
    ends: list[float] = []

    def losses(points: Sequence[Point], batch: Blocks) -> list[float]:
        seen.append(batch)
        return [2.0 + point.distance for point in points]

    def keep(row: Row) -> None:
        ends.append(float(next(iter(theta.b.values())).abs().sum()))
        assert row == Row(
            step=len(ends),
            seed=0,
            scalars=(1.0, 1.0),
            loss=2.0,
            learning_rate=row.learning_rate,
            tokens=seen[-1].tokens,
            seconds=1.0,
        )

    plan = replace(PLAN, probes=2, steps=3)
    train(
        losses,
        theta,
        shuffled(BUCKETS, size=plan.batch, seed=plan.seed),
        plan,
        done=[],
        keep=keep,
        measure=lambda _: None,
        clock=lambda: float(next(clock)),
    )
    assert ends[0] == 0.0 < ends[1]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_step_size_does_not_depend_on_how_steep_the_loss_is(scale: float) -> None:
    size = StepSize(PLAN)
    moves = [
        size.learning_rate(left(step), [scalar * scale]) * scalar * scale for step, scalar in enumerate((1, -2, 1.5), 1)
    ]
    assert moves == pytest.approx([0.01, -0.0196, 0.0146], abs=1e-3)


def test_an_outlier_moves_no_further_than_three_typical_probes() -> None:
    size = StepSize(PLAN)
    for step in range(1, 5):
        size.learning_rate(left(step), [1.0])
    assert abs(size.learning_rate(left(5), [1e9]) * 1e9) <= 3 * PLAN.step_size


def test_several_scalars_count_by_their_root_mean_square_and_move_as_far_each() -> None:
    """Two probes of 3 and 4 are as steep as one of sqrt(12.5), and an update takes their mean."""
    one, two = StepSize(PLAN), StepSize(PLAN)
    for step in range(1, 5):
        assert two.learning_rate(left(step), [3.0, 4.0]) / 2 == pytest.approx(
            one.learning_rate(left(step), [12.5**0.5]), rel=1e-6
        )


def test_a_flat_loss_moves_nothing() -> None:
    size = StepSize(PLAN)
    assert size.learning_rate(left(1), [0.0]) == 0.0
    assert size.learning_rate(left(2), [1.0]) > 0


def test_steps_stay_as_long_as_they_are_until_near_the_end() -> None:
    size = StepSize(PLAN)
    rates = [size.learning_rate(left(step), [1.0]) for step in range(1, PLAN.steps + 1)]
    falling = round(PLAN.steps * StepSize.FALLING)
    assert rates[:-falling] == pytest.approx([PLAN.step_size] * (PLAN.steps - falling))
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(PLAN.step_size / PLAN.steps / StepSize.FALLING)
