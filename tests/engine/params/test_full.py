"""All weights as parameters: they change by exactly what the rows say, on average even in half precision."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pocketllm.engine.data.batches import shuffled
from pocketllm.engine.formats.model_folder import FLOAT_DTYPES, open_model_folder
from pocketllm.engine.method import StepRecord
from pocketllm.engine.noise import ROUNDING_POOL, Direction, Kind
from pocketllm.engine.params.full import FullWeights, save_full
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.estimator import replay, update
from pocketllm.mezo.method import MeZO, MeZOPlan
from tests.support.models.learning import (
    ALL_ROWS,
    FP32_TOLERANCE,
    imported,
    mean_loss,
    random_blocks,
    reference_losses,
    some_blocks,
    transformers_model,
)
from tests.support.models.tiny_architectures import MASKED
from tests.support.models.tiny_models import tiny_model_folder

NOW = datetime(2026, 7, 1, tzinfo=UTC)
#: Standard errors that a mean may be off: one run in 15 000 with other bits would be.
SIGMAS = 4.0
KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")
HALVES = (torch.bfloat16, torch.float16)


def some_records(steps: int = 20, learning_rate: float = 1e-3) -> list[StepRecord]:
    return [
        StepRecord(step=step, seed=3, scalars=(0.3 + step / 7, -1.1), loss=0.0, learning_rate=learning_rate, tokens=1)
        for step in range(1, steps + 1)
    ]


def test_wide_floats_move_by_plain_addition() -> None:
    """By the z that a probe draws for the same tensor row by row, whatever the parts that it is moved in."""
    shapes = [(7, 5), (3,), (), (1031, 1021)]
    assert ROUNDING_POOL < 1031 * 1021
    for dtype, kind in product((torch.float32, torch.float64), KINDS):
        theta = FullWeights({str(i): torch.randn(shape, dtype=dtype) for i, shape in enumerate(shapes)})
        before = [tensor.clone() for tensor in theta.tensors.values()]
        direction = Direction(seed=1, step=2, probe=1, kind=kind)
        theta.add_scaled(direction, 0.25)
        for number, (old, tensor) in enumerate(zip(before, theta.tensors.values(), strict=True)):
            assert torch.equal(tensor, torch.add(old, direction.of(number, old.shape, dtype), alpha=0.25))
        assert theta.numbers == {"0": 0, "1": 1, "2": 2, "3": 3}


@pytest.mark.parametrize(
    ("dtype", "start", "kind"),
    [
        (torch.bfloat16, 0.05, "rademacher"),
        (torch.bfloat16, -1.0, "gaussian"),  # where neighbours lie closer on one side
        (torch.bfloat16, 3e-39, "gaussian"),  # subnormal: evenly spaced
        (torch.float16, -2e-5, "rademacher"),  # likewise
        (torch.float16, 6.1e-5, "gaussian"),  # the least normal number
        (torch.float16, 0.0, "rademacher"),
        (torch.float16, 0.05, "gaussian"),
    ],
)
def test_updates_below_the_resolution_are_right_on_average(dtype: torch.dtype, start: float, kind: Kind) -> None:
    """The sum of many tiny updates arrives within its standard error; by plain rounding none of them would."""
    count, steps = 60_000, 40
    theta = FullWeights({"x": torch.full((count,), start, dtype=dtype)})
    weights = theta.tensors["x"]
    begun, exact = weights.double(), torch.zeros(count, dtype=torch.float64)
    spacing = float(torch.nextafter(weights[:1], torch.ones(1, dtype=dtype)) - weights[0])
    distance = spacing / 20
    for step in range(1, steps + 1):
        direction = Direction(seed=5, step=step, kind=kind)
        z = direction.of(0, (count,), torch.float64)
        assert torch.equal((begun + distance * z.clamp(-3, 3)).to(dtype).double(), begun)
        theta.add_scaled(direction, distance)
        exact += distance * z
    moved = weights.double() - begun
    error = moved - exact
    assert abs(float(error.mean())) < SIGMAS * float(error.std()) / count**0.5
    # How much of each weight's own sum arrived.
    slope = float((moved * exact).mean() / exact.square().mean())
    uncertainty = float(error.std() / (count * exact.square().mean()) ** 0.5)
    assert uncertainty < 0.03
    assert abs(slope - 1) < SIGMAS * uncertainty


def test_what_the_dtype_can_hold_is_never_rounded() -> None:
    numbers = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-14, 3 * 2.0**-24, -(2.0**-24), 0.15625, 1000.0])
    for dtype in HALVES:
        theta = FullWeights({"x": numbers.to(dtype)})
        for step in range(1, 30):
            theta.add_scaled(Direction(seed=1, step=step), 0.0)
        assert torch.equal(theta.tensors["x"].float(), numbers.to(dtype).float())


def test_rounding_goes_to_a_neighbour() -> None:
    for dtype in HALVES:
        theta = FullWeights({"x": torch.randn(5000).mul_(1e-4).to(dtype)})
        before = theta.tensors["x"].clone()
        direction = Direction(seed=1, step=1)
        theta.add_scaled(direction, 3e-7)
        exact = before.double() + 3e-7 * direction.of(0, (5000,), torch.float64)
        near = exact.to(dtype)
        low = torch.nextafter(near, torch.full_like(near, -torch.inf))
        high = torch.nextafter(near, torch.full_like(near, torch.inf))
        found = theta.tensors["x"]
        assert ((found == near) | (found == low) | (found == high)).all()
        assert ((found.double() - exact).abs() < (high.double() - low.double())).all()


def test_replay_gives_bitwise_the_same_weights(root: Path) -> None:
    rows = some_records()
    for dtype, kind in product(FLOAT_DTYPES, KINDS):
        model_folder = imported(root, "qwen3", dtype)
        one, two, three = (LanguageModel(model_folder).full() for _ in range(3))
        for row in rows:
            update(one, row, kind)
        replay(two, rows, kind)
        replay(three, [replace(row, seed=4) for row in rows], kind)
        assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
        stored = load_file(model_folder.weights)
        for name, tensor in one.tensors.items():
            assert not torch.equal(tensor, stored[name]), name
            assert not torch.equal(tensor, three.tensors[name]), name


@pytest.mark.parametrize("name", ["llama", "opt_projected", "roberta"])
@torch.inference_mode()
def test_saved_weights_are_a_model_of_their_own(root: Path, tmp_path: Path, name: str) -> None:
    """Ours reads it, and transformers too: with the losses that the weights in memory had."""
    model_folder, blocks = imported(root, name, "float32"), random_blocks()
    model = LanguageModel(model_folder)
    before = model.block_losses(blocks)
    theta = model.full()
    model.set_parameters(theta)
    replay(theta, some_records(), "rademacher")
    losses = model.block_losses(blocks)
    assert losses != pytest.approx(before, abs=1e-3)

    save_full(model_folder, theta, tmp_path / "trained", created_at=NOW)
    trained = open_model_folder(tmp_path / "trained", verify=True)
    assert LanguageModel(trained).block_losses(blocks) == losses
    assert trained.tokenizer().get_vocab() == model_folder.tokenizer().get_vocab()
    weights = trained.manifest.model_dump(include={"weights_sha256", "weights_bytes"})
    changes = {"name": "trained", "source": model_folder.manifest.name, "created_at": NOW, **weights}
    assert trained.manifest == model_folder.manifest.model_copy(update=changes)
    theirs = transformers_model(trained.path, is_mlm=name in MASKED, dtype=torch.float32)
    assert reference_losses(theirs, blocks) == pytest.approx(losses, abs=2 * FP32_TOLERANCE)


def test_saved_weights_keep_their_dtype_and_every_bit(root: Path, tmp_path: Path) -> None:
    for dtype in HALVES:
        model_folder = imported(root, "gemma3_text", str(dtype).removeprefix("torch."))
        theta = LanguageModel(model_folder).full()
        replay(theta, some_records(3))
        save_full(model_folder, theta, tmp_path / "trained", created_at=NOW)
        stored = load_file(tmp_path / "trained" / "model.safetensors")
        assert stored.keys() == theta.tensors.keys()
        assert all(torch.equal(stored[name], tensor) for name, tensor in theta.tensors.items())
        assert {tensor.dtype for tensor in stored.values()} == {dtype}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kind", "probes"), [("float32", "rademacher", 1), ("bfloat16", "gaussian", 2)])
def test_a_model_learns_with_all_its_weights(tmp_path: Path, dtype: str, kind: Kind, probes: int) -> None:
    model = LanguageModel(
        open_model_folder(tiny_model_folder(tmp_path, dtype=dtype)), dtype=torch.float32, release_pages=True
    )
    theta, buckets = model.full(), (some_blocks(),)
    model.set_parameters(theta)
    plan = MeZOPlan(seed=1, epsilon=1e-3, step_size=1e-3, probes=probes, noise=kind)
    mezo = MeZO(lambda points, batch: model.losses_at(points, batch, ALL_ROWS), theta, plan, to_start=lambda: None)
    batch = shuffled(buckets, size=12, seed=1)
    with torch.inference_mode():
        before = mean_loss(model, some_blocks())
        records = [mezo.step(n, batch(n), remaining=1 - (n - 1) / 100, share=1.0) for n in range(1, 101)]
        after = mean_loss(model, some_blocks())
        again = LanguageModel(model.folder).full()
        replay(again, records, kind)
    assert after < before - 0.1
    assert all(torch.equal(theta.tensors[name], again.tensors[name]) for name in theta.tensors)


def test_reloaded_weights_are_those_that_were_loaded(root: Path) -> None:
    model_folder = imported(root, "llama", "bfloat16")
    theta, untouched = LanguageModel(model_folder).full(), LanguageModel(model_folder).full()
    theta.add_scaled(Direction(seed=1, step=1), 0.1)
    assert not any(torch.equal(tensor, untouched.tensors[name]) for name, tensor in theta.tensors.items())
    theta.reload(model_folder.weights)
    assert all(torch.equal(tensor, untouched.tensors[name]) for name, tensor in theta.tensors.items())
