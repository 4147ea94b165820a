"""NAdam on exact gradients, against torch's NAdam on transformers' own autograd through the whole model."""

from copy import deepcopy
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
import torch

from pocketllm.backprop.gradients import PassSize
from pocketllm.backprop.method import (
    B_RATE,
    MIN_SHARE,
    SCALING,
    SERVED,
    WARM_UP_STEPS,
    Exact,
    ExactPlan,
    adapted_paths,
    fresh_adapter,
    schedule,
)
from pocketllm.backprop.nadam import BETA1, BETA2
from pocketllm.engine.data.batches import Batch, shuffled
from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.method import StepRecord
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.backpropagation import layers_adapter, whole_gradients
from tests.support.models.learning import equal, family, imported, mean_loss, random_blocks, some_blocks
from tests.support.models.tiny_architectures import ARCHITECTURES, MASKED

PLAN = ExactPlan(seed=3, rate=1e-2)
SIZE = PassSize(stored=32, micro_batch=32)
STEPS = 6
TEXT = shuffled((some_blocks(), some_blocks(5, 8)), size=4, seed=3)


def left(step: int) -> float:
    return 1 - (step - 1) / STEPS


def whole_step(
    exact: Exact, step: int, batch: Batch, *, remaining: float | None = None, share: float = 1.0
) -> StepRecord:
    remaining = left(step) if remaining is None else remaining
    while (record := exact.step(step, batch, remaining=remaining, share=share)) is None:
        pass
    return record


class Training:
    """A run on a tiny model, from a fresh adapter."""

    def __init__(
        self, model_folder: ModelFolder, *, dtype: torch.dtype = torch.float32, plan: ExactPlan = PLAN
    ) -> None:
        self.model = LanguageModel(model_folder, dtype=dtype)
        self.adapter = fresh_adapter(self.model, rank=4, seed=plan.seed)
        self.model.set_parameters(self.adapter)
        self.exact = Exact(self.model, self.adapter, plan, SIZE, to_start=self.to_start)

    def to_start(self) -> None:
        fresh = fresh_adapter(self.model, rank=4, seed=PLAN.seed)
        for path in fresh.a:
            self.adapter.a[path].copy_(fresh.a[path])
            self.adapter.b[path].copy_(fresh.b[path])

    @torch.no_grad()
    def run(self, first: int = 1, last: int = STEPS) -> list[StepRecord]:
        return [whole_step(self.exact, step, TEXT(step)) for step in range(first, last + 1)]


@pytest.mark.parametrize(("name", "samples_weight"), [("llama", 0.0), *((name, 0.25) for name in ARCHITECTURES)])
def test_equals_a_dense_reference(root: Path, name: str, samples_weight: float) -> None:
    """In float64, with samples of the base model: the objective is the weighted sum."""
    model = LanguageModel(imported(root, name, "float32"), dtype=torch.float64)
    adapter = layers_adapter(model)
    expected = deepcopy(adapter)
    expected.alpha /= SERVED
    model.set_parameters(adapter)

    def batch(step: int) -> Batch:
        return random_blocks(3 + step, 20, lengths=[20] * 3 + [9] * step if name in MASKED else None)

    def samples(step: int) -> Batch:
        return random_blocks(2, 10 + step)

    plan = replace(PLAN, samples_weight=samples_weight)
    exact = Exact(model, adapter, plan, SIZE, to_start=lambda: None, samples=samples if samples_weight else None)
    # torch's NAdam begins with half the momentum, and gets to all of it at the speed of momentum_decay: at once.
    groups = [{"params": list(factors.values())} for factors in (expected.a, expected.b)]
    optimizer = torch.optim.NAdam(groups, betas=(BETA1, BETA2), momentum_decay=1e9)
    for step in range(1, 4):
        record = whole_step(exact, step, batch(step), share=0.5)
        for group, times in zip(optimizer.param_groups, (1, B_RATE), strict=True):
            group["lr"] = times * 0.5 * PLAN.rate * schedule(step, left(step))
        parts = [(batch(step), 1 - samples_weight), (samples(step), samples_weight)]
        losses, gradients = whole_gradients(family(root, name), expected, parts)
        for path, pair in gradients.items():
            expected.a[path].grad, expected.b[path].grad = pair
        norm = sqrt(sum(float(gradient.square().sum()) for pair in gradients.values() for gradient in pair))
        optimizer.step()
        assert record.loss == pytest.approx(losses[0], rel=1e-8)
        assert record.scalars == pytest.approx((norm,), rel=1e-6)
        assert record.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        assert record.tokens == batch(step).tokens
    for ours, theirs in ((adapter.a, expected.a), (adapter.b, expected.b)):
        for path in theirs:
            # A step is of the size of the rate wherever the gradient's sign is known, so it is what tells.
            assert torch.allclose(ours[path], theirs[path], rtol=0, atol=1e-5 * PLAN.rate), path


def test_the_same_seed_gives_the_same_bits(tiny_bf16: ModelFolder) -> None:
    for seed in (0, 3):
        plans = (replace(PLAN, seed=seed), replace(PLAN, seed=seed), replace(PLAN, seed=seed + 1))
        one, two, other = (Training(tiny_bf16, dtype=torch.bfloat16, plan=plan) for plan in plans)
        assert one.run() == two.run()
        assert equal(one.adapter, two.adapter)
        other.run()
        assert not equal(one.adapter, other.adapter)


def test_restored_from_any_step_it_ends_alike_bit_for_bit(tiny_bf16: ModelFolder) -> None:
    undisturbed = Training(tiny_bf16, dtype=torch.bfloat16)
    records = undisturbed.run()
    for step in (0, 1, 3, STEPS):
        before = Training(tiny_bf16, dtype=torch.bfloat16)
        before.run(last=step)
        state = {name: tensor.clone() for name, tensor in before.exact.state().items()}
        before.run(step + 1)  # what is lost
        for training in (before, Training(tiny_bf16, dtype=torch.bfloat16)):
            training.exact.restore({name: tensor.clone() for name, tensor in state.items()}, ())
            assert training.run(step + 1) == records[step:]
            assert equal(training.adapter, undisturbed.adapter), step


@torch.no_grad()
def test_restored_in_the_middle_of_a_step_it_ends_alike_bit_for_bit(tiny_bf16: ModelFolder) -> None:
    undisturbed, before, after = (Training(tiny_bf16, dtype=torch.bfloat16) for _ in range(3))
    records = undisturbed.run()
    before.run(last=4)
    passes = 0
    while before.exact.step(5, TEXT(5), remaining=left(5), share=1.0) is None:
        passes += 1
        state = {name: tensor.clone() for name, tensor in before.exact.state().items()}
        after.exact.restore(state, ())
        assert after.run(first=5) == records[4:]
        assert equal(after.adapter, undisturbed.adapter)
    assert passes and "sum.passes" not in before.exact.state()


def test_without_a_state_it_begins_anew(tiny: ModelFolder) -> None:
    training = Training(tiny)
    records = training.run()
    training.exact.restore({}, records)
    assert equal(training.adapter, fresh_adapter(training.model, rank=4, seed=PLAN.seed))
    assert training.run() == records


def test_the_loss_falls(tiny_bf16: ModelFolder) -> None:
    training = Training(tiny_bf16, dtype=torch.bfloat16)
    with torch.no_grad():
        before = mean_loss(training.model, some_blocks())
        for step in range(1, 41):
            whole_step(training.exact, step, some_blocks(), remaining=1 - (step - 1) / 40)
        after = mean_loss(training.model, some_blocks())
    assert after < before / 2


def test_a_loss_that_is_no_number_changes_nothing(tiny: ModelFolder) -> None:
    training = Training(tiny)
    training.run(last=2)
    next(iter(training.adapter.a.values()))[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in training.exact.state().items()}
    with pytest.raises(TrainingDiverged):
        training.run(first=3)
    after = training.exact.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) or before[name].isnan().any() for name in before)


@torch.no_grad()
def test_a_gradient_that_is_no_number_does_not_enter_the_optimizer(tiny: ModelFolder) -> None:
    """The loss is one: what overflows is the gradient of a B that is zero. Nothing is updated; restored, it goes on."""
    undisturbed, training = Training(tiny), Training(tiny)
    records = undisturbed.run()
    training.run(last=2)
    state = {name: tensor.clone() for name, tensor in training.exact.state().items()}
    path = adapted_paths(training.model)[0]
    training.adapter.b[path].zero_()
    training.adapter.a[path].fill_(1e25)
    with pytest.raises(TrainingDiverged, match=r"A gradient is not finite.*training\.rate"):
        training.run(first=3)
    after = training.exact.state()
    assert all(torch.equal(after[name], state[name]) for name in state if name not in (f"a.{path}", f"b.{path}"))
    training.exact.restore(state, ())
    assert training.run(first=3) == records[2:]
    assert equal(training.adapter, undisturbed.adapter)


def test_a_fresh_adapter_is_of_every_linear_map_of_the_layers_and_adds_nothing_yet(root: Path) -> None:
    for name in ARCHITECTURES:
        model = LanguageModel(imported(root, name, "float32"))
        adapter = fresh_adapter(model, rank=4, seed=1)
        assert list(adapter.a) == list(adapter.b) == adapted_paths(model)
        assert {model.stack.number_of(path) for path in adapter.a} == {0, 1}
        assert adapter.scaling == SCALING
        for path, a in adapter.a.items():
            assert a.shape == (4, model.linears[path].in_features)
            assert 0 < float(a.abs().max()) <= 1 / sqrt(a.shape[1])
            assert not adapter.b[path].count_nonzero()
        blocks = random_blocks()
        model.set_parameters(None)
        before = model.block_losses(blocks)
        model.set_parameters(adapter)
        assert model.block_losses(blocks) == before


def test_the_rate_warms_up_by_steps_and_then_falls_as_a_cosine() -> None:
    for step in range(1, WARM_UP_STEPS + 1):
        assert schedule(step, 1.0) == pytest.approx(step / WARM_UP_STEPS)
    for remaining, share in ((1.0, 1.0), (0.5, (1 + MIN_SHARE) / 2), (0.0, MIN_SHARE)):
        assert schedule(1000, remaining) == pytest.approx(share)
