"""Every family that can be imported, on streamed weights, against transformers' own forward pass and against itself."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.noise import Kind
from pocketllm.engine.streamed.loss import IGNORE_INDEX
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.quantization import PACKINGS
from tests.support.learning import (
    ALL_ROWS,
    FP32_TOLERANCE,
    imported,
    losses_moved,
    mean_loss,
    random_blocks,
    reference,
    reference_losses,
    sides,
    some_adapter,
    unpacked,
)
from tests.support.tiny_architectures import ARCHITECTURES, MASKED, WINDOW, families

pytestmark = pytest.mark.slow

#: The loss of a single token, up to 12 nats here, is no mean, in which roundings average out.
LONE_TOLERANCE = 6e-6
#: Logits are up to 40 here, so that fp32's 2^-24 of them is 2e-6; a dozen roundings.
LOGIT_TOLERANCE = 3e-5
#: bf16 has 2^-8 of each number; losses of 4 to 9 nats, over 50 targets whose roundings average out in part.
BF16_TOLERANCE = 0.02
#: How far packing moves the loss of a tiny random model, of 4 to 9 nats. Real ones, with less extreme logits: bench.
PACKED_TOLERANCE = {"int8": 0.05, "int4": 0.5}

every_architecture = pytest.mark.parametrize("name", families(ARCHITECTURES))
every_causal_one = pytest.mark.parametrize("name", families(name for name in ARCHITECTURES if name not in MASKED))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "architectures"


@cache
def shared_model(root: Path, name: str, dtype: str = "float32", release: bool = True) -> LanguageModel:
    """A model in float32 that no test trains as a whole."""
    return LanguageModel(imported(root, name, dtype), dtype=torch.float32, release_pages=release)


def base(root: Path, name: str, dtype: str = "float32", *, release: bool = True) -> LanguageModel:
    model = shared_model(root, name, dtype, release)
    model.set_parameters(None)
    return model


@every_architecture
@pytest.mark.parametrize("release", [False, True])
@torch.inference_mode()
def test_losses_equal_transformers(root: Path, name: str, release: bool) -> None:
    model, blocks = base(root, name, release=release), random_blocks()
    assert blocks.inputs.shape[1] > 2 * WINDOW  # a window that is overlooked shows
    assert model.block_losses(blocks) == pytest.approx(
        reference_losses(reference(root, name), blocks), abs=FP32_TOLERANCE
    )


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
@torch.inference_mode()
def test_a_window_hides_what_is_far_away(root: Path, name: str) -> None:
    """The last token's loss must not depend on what is further away than the windows of two layers reach."""
    model, length = base(root, name), 2 * WINDOW + 4
    inputs, targets = torch.full((2, length), 7), torch.full((2, length), IGNORE_INDEX)
    inputs[1, 0], targets[:, -1] = 99, 30
    one, two = model.block_losses(Batch(inputs=inputs, targets=targets))
    if name == "mistral":
        assert one == two
    else:  # one of whose two layers sees everything
        assert one != two


@torch.inference_mode()
def test_a_masked_model_does_not_see_the_padding(root: Path) -> None:
    model, lengths = base(root, "roberta"), [20, 13, 1, 7]
    blocks = random_blocks(lengths=lengths)
    losses = model.block_losses(blocks)
    assert losses == pytest.approx(reference_losses(reference(root, "roberta"), blocks), abs=FP32_TOLERANCE)
    for row, length in enumerate(lengths):
        alone = Batch(inputs=blocks.inputs[row : row + 1, :length], targets=blocks.targets[row : row + 1, :length])
        assert model.block_losses(alone) == pytest.approx([losses[row]], abs=FP32_TOLERANCE)
    model.set_parameters(some_adapter(model, targets=None))
    points = sides(probes=2)
    assert model.losses_at(points, blocks, 4) == pytest.approx(
        [model.losses_at([point], blocks, ALL_ROWS)[0] for point in points], abs=FP32_TOLERANCE
    )


@every_causal_one
@torch.inference_mode()
def test_a_causal_model_needs_no_mask_for_padding_on_the_right(root: Path, name: str) -> None:
    model, blocks = base(root, name), random_blocks(lengths=[20, 13, 2, 7])
    assert model.block_losses(blocks) == model.block_losses(replace(blocks, lengths=None))
    short = Batch(inputs=blocks.inputs[1:2, :13], targets=blocks.targets[1:2, :13])
    assert model.block_losses(short) == pytest.approx(model.block_losses(blocks)[1:2], abs=FP32_TOLERANCE)


@every_architecture
@torch.inference_mode()
def test_choices_are_the_only_words_that_count(root: Path, name: str) -> None:
    model, label_ids = base(root, name), (5, 60, 61)
    blocks = random_blocks()
    targets = torch.full_like(blocks.targets, IGNORE_INDEX)
    targets[torch.arange(4), torch.tensor([0, 7, 11, 19])] = torch.tensor([60, 5, 61, 60])
    blocks = replace(blocks, targets=targets, label_ids=label_ids)
    expected = reference_losses(reference(root, name), blocks, label_ids)
    assert model.block_losses(blocks) == pytest.approx(expected, abs=FP32_TOLERANCE)


@every_architecture
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@torch.inference_mode()
def test_losses_at_points_equal_those_of_a_moved_theta(root: Path, name: str, mode: str, kind: Kind) -> None:
    """Both sides of several probes in one walk, with all rows together and in parts, against a forward each."""
    model, blocks = LanguageModel(imported(root, name, "float32"), release_pages=True), random_blocks()
    theta = some_adapter(model, targets=None) if mode == "lora" else model.full()
    model.set_parameters(theta)
    points = sides(0.01, probes=3, kind=kind)
    together = model.losses_at(points, blocks, ALL_ROWS)
    assert together == pytest.approx(losses_moved(model, theta, points, blocks), abs=FP32_TOLERANCE)
    for micro_batch in (1, 2, 5, 8, 12):
        parts = model.losses_at(points, blocks, micro_batch)
        assert parts == pytest.approx(together, abs=FP32_TOLERANCE), micro_batch
    for probe in range(3):
        two = points[2 * probe : 2 * probe + 2]
        assert model.losses_at(two, blocks, ALL_ROWS) == pytest.approx(
            together[2 * probe : 2 * probe + 2], abs=FP32_TOLERANCE
        )
    # What is compared differs by much more than the tolerance.
    assert max(together) - min(together) > 1000 * FP32_TOLERANCE
    assert mean_loss(model, blocks) == pytest.approx(sum(together) / 6, abs=0.3)


@every_architecture
@pytest.mark.parametrize("mode", ["lora", "full"])
@torch.inference_mode()
def test_bf16_at_points_is_as_good_as_bf16_is(root: Path, name: str, mode: str) -> None:
    """bf16 layers, both sides together: as near to float32's losses as one side alone, and the slope survives."""
    points, blocks = sides(0.05, probes=2), random_blocks(8)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = LanguageModel(imported(root, name, "bfloat16"), dtype=dtype)
        model.set_parameters(some_adapter(model, targets=None) if mode == "lora" else model.full())
        found[dtype] = model.losses_at(points, blocks, ALL_ROWS)
        alone = [model.losses_at([point], blocks, ALL_ROWS)[0] for point in points]
        tolerance = BF16_TOLERANCE if dtype == torch.bfloat16 else FP32_TOLERANCE
        assert found[dtype] == pytest.approx(alone, abs=tolerance)
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], abs=2 * BF16_TOLERANCE)


@every_architecture
@pytest.mark.parametrize("packing", PACKINGS)
@torch.inference_mode()
def test_a_packed_model_is_the_float_model_of_its_numbers(root: Path, name: str, packing: str) -> None:
    model, blocks = base(root, name, packing), random_blocks()
    twin = LanguageModel(unpacked(root, name, packing), dtype=torch.float32)
    assert model.block_losses(blocks) == pytest.approx(twin.block_losses(blocks), abs=FP32_TOLERANCE)
    points = sides(probes=2)
    for one in (model, twin):
        one.set_parameters(some_adapter(one, targets=None))
    assert model.losses_at(points, blocks, 6) == pytest.approx(twin.losses_at(points, blocks, 6), abs=FP32_TOLERANCE)


@every_architecture
@pytest.mark.parametrize("packing", PACKINGS)
@torch.inference_mode()
def test_a_packed_model_is_near_the_original(root: Path, name: str, packing: str) -> None:
    blocks = random_blocks(16)
    exact, packed = mean_loss(base(root, name), blocks), mean_loss(base(root, name, packing), blocks)
    assert packed == pytest.approx(exact, abs=PACKED_TOLERANCE[packing])
    assert packed != exact


@every_architecture
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *PACKINGS])
@torch.inference_mode()
def test_releasing_pages_changes_no_bit(root: Path, name: str, dtype: str) -> None:
    blocks, found = random_blocks(), []
    for release in (False, True):
        model = LanguageModel(imported(root, name, dtype), release_pages=release)
        losses = model.block_losses(blocks)
        model.set_parameters(some_adapter(model, targets=None))
        found.append((losses, model.losses_at(sides(), blocks, 4), model.block_losses(blocks)))
    assert found[0] == found[1]


@every_architecture
@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 2), (3, 1), (1, 33)])
@torch.inference_mode()
def test_odd_sizes(root: Path, name: str, count: int, length: int) -> None:
    model, blocks = base(root, name), random_blocks(count, length)
    losses = model.block_losses(blocks, 1)
    assert losses == pytest.approx(reference_losses(reference(root, name), blocks), abs=LONE_TOLERANCE)
    adapter = some_adapter(model, targets=None)
    model.set_parameters(adapter)
    points = sides()
    expected = losses_moved(model, adapter, points, blocks)
    assert model.losses_at(points, blocks, 1) == pytest.approx(expected, abs=LONE_TOLERANCE)


@every_architecture
@torch.inference_mode()
def test_a_block_without_targets_has_no_loss(root: Path, name: str) -> None:
    model, blocks = base(root, name), random_blocks(3)
    blocks.targets[1] = IGNORE_INDEX
    assert model.block_losses(blocks)[1] == 0.0
    nothing = replace(blocks, targets=torch.full_like(blocks.targets, IGNORE_INDEX))
    model.set_parameters(some_adapter(model, targets=None))
    assert model.losses_at(sides(), nothing, ALL_ROWS) == [0.0, 0.0]


@every_causal_one
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@torch.inference_mode()
def test_next_logits_behind_a_cache_equal_one_forward(root: Path, name: str, dtype: str) -> None:
    model = base(root, name, dtype, release=False)
    twin = LanguageModel(unpacked(root, name, dtype)) if dtype in PACKINGS else None
    ids = random_blocks(1, 3 * WINDOW).inputs
    cache = DynamicCache(config=model.network.config)
    starts = (0, WINDOW + 3, WINDOW + 4, 2 * WINDOW + 1)  # a prompt past the window, a token, more, and the rest
    for start, stop in zip(starts, (*starts[1:], ids.shape[1]), strict=True):
        logits = model.next_logits(ids[:, start:stop], cache)
        if twin:
            expected = twin.next_logits(ids[:, :stop], DynamicCache(config=twin.network.config))
        else:
            expected = reference(root, name)(input_ids=ids[:, :stop]).logits[0, -1]
        assert torch.allclose(logits, expected, rtol=0, atol=LOGIT_TOLERANCE), (start, stop)
