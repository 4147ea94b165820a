"""MeZO as the trainer runs it: its records, its step size, and that it learns."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from pocketllm.engine.data.batches import Batch, shuffled
from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.method import StepRecord
from pocketllm.engine.noise import Perturbation
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.activation_pca import adapter_along_activations
from pocketllm.mezo.method import MeZO, MeZOPlan, StepSize
from tests.support.models.learning import ALL_ROWS, TARGETS, equal, mean_loss, some_blocks

PLAN = MeZOPlan(seed=0, epsilon=1e-2, step_size=1e-2)
STEPS, SIZE = 12, 4
BUCKETS = (some_blocks(), some_blocks(5, 8))


def fresh(model: LanguageModel) -> Adapter:
    return adapter_along_activations(model, (some_blocks(8),), targets=TARGETS, rank=4, seed=0, micro_batch=ALL_ROWS)


def left(step: int, steps: int = STEPS) -> float:
    """The part of the run that lies ahead of a step."""
    return 1 - (step - 1) / steps


def run(
    model: LanguageModel, plan: MeZOPlan, *, steps: int = STEPS, size: int = SIZE, done: Sequence[StepRecord] = ()
) -> tuple[Adapter, list[StepRecord]]:
    """Train, from behind these records on."""
    adapter, start = fresh(model), fresh(model)
    model.set_parameters(adapter)

    def to_start() -> None:
        for path, b in adapter.b.items():
            b.copy_(start.b[path])

    mezo = MeZO(lambda points, blocks: model.losses_at(points, blocks, ALL_ROWS), adapter, plan, to_start)
    batch = shuffled(BUCKETS, size=size, seed=plan.seed)
    with torch.inference_mode():
        mezo.restore({}, done)
        made = [
            mezo.step(number, batch(number), remaining=left(number, steps), share=1.0)
            for number in range(len(done) + 1, steps + 1)
        ]
    return adapter, [*done, *made]


@pytest.mark.parametrize(
    "plan",
    [replace(PLAN, probes=3), replace(PLAN, probes=2, noise="gaussian", seed=2**64 - 1)],
    ids=["signs", "gaussian"],
)
def test_a_run_that_is_restored_from_its_records_ends_alike_bit_for_bit(tiny_bf16: ModelFolder, plan: MeZOPlan) -> None:
    model = LanguageModel(tiny_bf16)
    undisturbed, records = run(model, plan)
    assert {len(record.scalars) for record in records} == {plan.probes}
    for step in (0, STEPS // 2 - 1, STEPS - 1):
        resumed, again = run(model, plan, done=records[:step])
        assert equal(resumed, undisturbed), step
        assert again == records, step


def test_the_number_of_probes_and_the_noise_make_other_runs(tiny_bf16: ModelFolder) -> None:
    model = LanguageModel(tiny_bf16)
    plans = [PLAN, replace(PLAN, probes=2), replace(PLAN, noise="gaussian"), replace(PLAN, seed=1)]
    ends = [run(model, plan)[0] for plan in plans]
    assert not any(equal(a, b) for i, a in enumerate(ends) for b in ends[:i])


def test_loss_falls(tiny: ModelFolder) -> None:
    model = LanguageModel(tiny)
    adapter, _ = run(model, replace(PLAN, seed=1), steps=150, size=8)
    with torch.inference_mode():
        model.set_parameters(None)
        before = mean_loss(model, some_blocks())
        model.set_parameters(adapter)
        after = mean_loss(model, some_blocks())
    assert after < before - 0.04


@pytest.mark.parametrize(("probes", "places"), [(1, (0, 1)), (15, (0, 9))])
def test_a_loss_that_is_no_number_at_any_point_changes_nothing(
    tiny: ModelFolder, probes: int, places: tuple[int, ...]
) -> None:
    model, plan = LanguageModel(tiny), replace(PLAN, probes=probes)
    whole, records = run(model, plan)
    torn: list[int] = []  # places of points without a loss

    def losses(points: Sequence[Perturbation], batch: Batch) -> list[float]:
        found = model.losses_at(points, batch, ALL_ROWS)
        for place in torn:
            found[place] = float("nan")
        return found

    for place in places:
        adapter = fresh(model)
        model.set_parameters(adapter)
        mezo, batch = MeZO(losses, adapter, plan, to_start=lambda: None), shuffled(BUCKETS, size=SIZE, seed=plan.seed)
        with torch.inference_mode():
            made = []
            for number in range(1, STEPS + 1):
                torn[:] = [place]
                with pytest.raises(TrainingDiverged, match=f"step {number} "):
                    mezo.step(number, batch(number), remaining=left(number), share=1.0)
                torn.clear()
                made.append(mezo.step(number, batch(number), remaining=left(number), share=1.0))
        assert made == records, place
        assert equal(adapter, whole), place


def test_a_record_says_what_its_step_saw(tiny: ModelFolder) -> None:
    """Tokens are counted once, however many points saw them; early stopping's share is one of the rate."""
    theta, batch = fresh(LanguageModel(tiny)), some_blocks()

    def losses(points: Sequence[Perturbation], _: Batch) -> list[float]:
        return [2.0 + point.distance for point in points]

    whole, half = (
        MeZO(losses, theta, replace(PLAN, probes=2), to_start=lambda: None).step(7, batch, remaining=1.0, share=share)
        for share in (1.0, 0.5)
    )
    assert (whole.step, whole.seed, whole.loss, whole.tokens) == (7, 0, 2.0, batch.tokens)
    assert whole.scalars == pytest.approx((1.0, 1.0), rel=1e-6)
    assert half == replace(whole, learning_rate=whole.learning_rate / 2)
    assert any(b.count_nonzero() for b in theta.b.values())


def rates(*scalars: Sequence[float]) -> list[float]:
    """The learning rate of each step, given its scalars."""
    size = StepSize()
    return [size.learning_rate(PLAN.step_size, left(step), found) for step, found in enumerate(scalars, 1)]


def test_step_size_does_not_depend_on_how_steep_the_loss_is() -> None:
    for scale in (1e-6, 1.0, 1e6):
        scalars = [scale, -2 * scale, 1.5 * scale]
        moves = [rate * scalar for rate, scalar in zip(rates(*([s] for s in scalars)), scalars, strict=True)]
        assert moves == pytest.approx([0.01, -0.0196, 0.0146], abs=1e-3), scale


def test_an_outlier_moves_no_further_than_three_typical_probes() -> None:
    assert rates(*[[1.0]] * 4, [1e9])[-1] * 1e9 <= 3 * PLAN.step_size


def test_several_scalars_count_by_their_root_mean_square_and_move_as_far_each() -> None:
    """Two probes of 3 and 4 are as steep as one of sqrt(12.5), and an update takes their mean."""
    of_each = [rate / 2 for rate in rates(*[[3.0, 4.0]] * 4)]
    assert of_each == pytest.approx(rates(*[[12.5**0.5]] * 4), rel=1e-6)


def test_a_flat_loss_moves_nothing() -> None:
    flat, steep = rates([0.0], [1.0])
    assert flat == 0.0 < steep


def test_steps_stay_as_long_as_they_are_until_near_the_end() -> None:
    found, falling = rates(*[[1.0]] * STEPS), round(STEPS * StepSize.FALLING)
    assert found[:-falling] == pytest.approx([PLAN.step_size] * (STEPS - falling))
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(PLAN.step_size / STEPS / StepSize.FALLING)
