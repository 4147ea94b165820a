from contextlib import suppress
from pathlib import Path

import pytest
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.directions import adapter_along_activations
from pocketllm.mezo.errors import TrainingDiverged
from pocketllm.mezo.loop import Plan, Row, StepSize, train
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel, open_native
from tests.learning import TARGETS, equal, some_blocks
from tests.tiny_models import tiny_native

PLAN = Plan(seed=0, steps=12, batch=4, epsilon=1e-2, step_size=1e-2, measure_every=5)


def fresh(model: LanguageModel) -> Adapter:
    return adapter_along_activations(model, some_blocks(8), targets=TARGETS, rank=4, seed=0)


def ticking() -> float:
    """A clock that stands still: nothing may depend on it."""
    return 0.0


def run(
    model: LanguageModel, plan: Plan, *, until: int | None = None, done: list[Row] | None = None
) -> tuple[Adapter, list[Row], list[int]]:
    """Train; `until`: be killed right after keeping that step's row, before its update."""
    adapter, rows, measured = fresh(model), list(done or []), list[int]()

    def keep(row: Row) -> None:
        rows.append(row)
        if row.step == until:
            raise InterruptedError

    with torch.inference_mode(), suppress(InterruptedError):
        train(model, adapter, some_blocks(), plan, done=list(rows), keep=keep, measure=measured.append, clock=ticking)
    return adapter, rows, measured


def test_an_interrupted_run_ends_like_an_undisturbed_one_bit_for_bit(tiny_bf16: NativeModel) -> None:
    model = LanguageModel(tiny_bf16)
    undisturbed, rows, _ = run(model, PLAN)
    for step in range(1, PLAN.steps + 1):
        _, kept, _ = run(model, PLAN, until=step)
        resumed, again, _ = run(model, PLAN, done=kept)
        assert equal(resumed, undisturbed), step
        assert again == rows, step


def test_measures_at_both_ends_and_between(tiny: NativeModel) -> None:
    model = LanguageModel(tiny)
    assert run(model, PLAN)[2] == [0, 5, 10, 12]
    _, kept, measured = run(model, PLAN, until=5)
    assert measured == [0]  # killed before it came to it
    assert run(model, PLAN, done=kept)[2] == [5, 10, 12]


def test_loss_falls(tmp_path: Path) -> None:
    model = LanguageModel(open_native(tiny_native(tmp_path, dtype="float32")))
    plan = Plan(seed=1, steps=150, batch=8, epsilon=1e-2, step_size=1e-2, measure_every=150)
    adapter, _, _ = run(model, plan)
    with torch.inference_mode():
        model.use(None)
        before = sum(model.block_losses(some_blocks()))
        model.use(adapter)
        after = sum(model.block_losses(some_blocks()))
    assert after < before - 0.5


def test_a_loss_that_is_no_number_ends_the_run(tiny: NativeModel) -> None:
    model, adapter = LanguageModel(tiny), fresh(LanguageModel(tiny))
    next(iter(adapter.a.values())).fill_(float("nan"))
    with torch.inference_mode(), pytest.raises(TrainingDiverged, match="step 1"):
        train(model, adapter, some_blocks(), PLAN, done=[], keep=lambda _: None, measure=lambda _: None, clock=ticking)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_step_size_does_not_depend_on_how_steep_the_loss_is(scale: float) -> None:
    size = StepSize(PLAN)
    moves = [size.learning_rate(step, scalar * scale) * scalar * scale for step, scalar in enumerate((1, -2, 1.5), 1)]
    assert moves == pytest.approx([0.01, -0.0180, 0.0122], abs=1e-3)


def test_an_outlier_moves_no_further_than_three_typical_probes() -> None:
    size = StepSize(PLAN)
    for step in range(1, 5):
        size.learning_rate(step, 1.0)
    assert abs(size.learning_rate(5, 1e9) * 1e9) <= 3 * PLAN.step_size


def test_a_flat_loss_moves_nothing() -> None:
    size = StepSize(PLAN)
    assert size.learning_rate(1, 0.0) == 0.0
    assert size.learning_rate(2, 1.0) > 0


def test_last_step_is_the_smallest() -> None:
    size = StepSize(PLAN)
    rates = [size.learning_rate(step, 1.0) for step in range(1, PLAN.steps + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(PLAN.step_size / PLAN.steps)
