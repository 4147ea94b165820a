"""Every family that can be imported, on streamed weights, against transformers' own forward pass and against itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch
from pocketllm.engine.formats.quantization import PACKINGS
from pocketllm.engine.noise import Kind
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import (
    ALL_ROWS,
    FP32_TOLERANCE,
    family,
    family_as_stored,
    imported,
    losses_moved,
    mean_loss,
    random_blocks,
    reference_losses,
    sides,
    some_adapter,
)
from tests.support.models.tiny_architectures import ARCHITECTURES, MASKED, WINDOW, families

pytestmark = pytest.mark.slow

#: Against float64: 1e-6 of a loss, which is up to 12 nats here and, of a single token, no mean in which roundings
#: average out.
LONE_TOLERANCE = 1.2e-5
#: Likewise, of twenty tokens' mean.
MEAN_TOLERANCE = 5e-6
#: Logits are up to 40 here, so that fp32's 2^-24 of them is 2e-6; a dozen roundings.
LOGIT_TOLERANCE = 3e-5
#: bf16 has 2^-8 of each number; losses of 4 to 9 nats, over 50 targets whose roundings average out in part.
BF16_TOLERANCE = 0.02
#: How far packing moves the loss of a tiny random model, of 4 to 9 nats. Real ones, with less extreme logits: bench.
PACKED_TOLERANCE = {"int8": 0.05, "int4": 0.5}

every_family = pytest.mark.parametrize("name", families())
every_causal_family = pytest.mark.parametrize("name", families(name for name in ARCHITECTURES if name not in MASKED))
MODES: tuple[tuple[str, Kind], ...] = (("lora", "rademacher"), ("full", "gaussian"))


def base(root: Path, name: str, dtype: str = "float32", *, release: bool = True) -> LanguageModel:
    return LanguageModel(imported(root, name, dtype), dtype=torch.float32, release_pages=release)


def labelled_blocks() -> Batch:
    """Blocks with one target each, which is one of three labels."""
    blocks = random_blocks()
    targets = torch.full_like(blocks.targets, IGNORE_INDEX)
    targets[torch.arange(4), torch.tensor([0, 7, 11, 19])] = torch.tensor([60, 5, 61, 60])
    return replace(blocks, targets=targets, label_ids=(5, 60, 61))


@every_family
@torch.inference_mode()
def test_losses_are_those_of_transformers(root: Path, name: str) -> None:
    plain, padded = random_blocks(), random_blocks(lengths=[20, 13, 1, 7])
    assert plain.inputs.shape[1] > 2 * WINDOW  # a window that is overlooked shows
    for blocks, tolerance in ((plain, MEAN_TOLERANCE), (labelled_blocks(), LONE_TOLERANCE), (padded, LONE_TOLERANCE)):
        expected = pytest.approx(reference_losses(family(root, name), blocks), abs=tolerance)
        for release in (False, True):
            assert base(root, name, release=release).block_losses(blocks) == expected


@every_family
@torch.inference_mode()
def test_losses_of_odd_sizes(root: Path, name: str) -> None:
    model, points = base(root, name), sides()
    adapter = some_adapter(model, targets=None)
    for count, length in ((1, 1), (1, 2), (3, 1), (1, 33)):
        blocks = random_blocks(count, length)
        model.set_parameters(None)
        expected = reference_losses(family(root, name), blocks)
        assert model.block_losses(blocks, 1) == pytest.approx(expected, abs=LONE_TOLERANCE)
        model.set_parameters(adapter)
        moved = losses_moved(model, adapter, points, blocks)
        assert model.losses_at(points, blocks, 1) == pytest.approx(moved, abs=LONE_TOLERANCE)
    blocks = random_blocks(3)
    blocks.targets[1] = IGNORE_INDEX
    assert model.block_losses(blocks)[1] == 0.0
    nothing = replace(blocks, targets=torch.full_like(blocks.targets, IGNORE_INDEX))
    assert model.losses_at(points, nothing, ALL_ROWS) == [0.0, 0.0]


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


@every_family
@torch.inference_mode()
def test_losses_at_points_are_those_of_moved_parameters(root: Path, name: str) -> None:
    """Both sides of several probes in one pass, with all rows together and in parts, against a pass for each."""
    blocks = random_blocks(lengths=[20, 13, 1, 7] if name in MASKED else None)
    for mode, kind in MODES:
        model = LanguageModel(imported(root, name, "float32"), release_pages=True)
        theta = some_adapter(model, targets=None) if mode == "lora" else model.full()
        model.set_parameters(theta)
        points = sides(0.01, probes=3, kind=kind)
        together = model.losses_at(points, blocks, ALL_ROWS)
        assert together == pytest.approx(losses_moved(model, theta, points, blocks), abs=FP32_TOLERANCE)
        for micro_batch in (1, 5, 12):
            parts = model.losses_at(points, blocks, micro_batch)
            assert parts == pytest.approx(together, abs=FP32_TOLERANCE), micro_batch
        # What is compared differs by much more than the tolerance.
        assert max(together) - min(together) > 1000 * FP32_TOLERANCE
        assert mean_loss(model, blocks) == pytest.approx(sum(together) / 6, abs=0.3)


@every_family
@torch.inference_mode()
def test_bf16_at_points_is_as_good_as_bf16_is(root: Path, name: str) -> None:
    """bf16 layers, both sides together: as near to float32's losses as one side alone, and the slope survives."""
    points, blocks = sides(0.05, probes=2), random_blocks(8)
    for mode, _ in MODES:
        found = {}
        for dtype, tolerance in ((torch.bfloat16, BF16_TOLERANCE), (torch.float32, FP32_TOLERANCE)):
            model = LanguageModel(imported(root, name, "bfloat16"), dtype=dtype)
            model.set_parameters(some_adapter(model, targets=None) if mode == "lora" else model.full())
            found[dtype] = model.losses_at(points, blocks, ALL_ROWS)
            alone = [model.losses_at([point], blocks, ALL_ROWS)[0] for point in points]
            assert found[dtype] == pytest.approx(alone, abs=tolerance), mode
        assert found[torch.bfloat16] == pytest.approx(found[torch.float32], abs=2 * BF16_TOLERANCE), mode


@every_family
@torch.inference_mode()
def test_a_packed_model_is_the_float_model_of_its_numbers(root: Path, name: str) -> None:
    blocks, many, points = random_blocks(), random_blocks(16), sides(probes=2)
    exact = mean_loss(base(root, name), many)
    for packing in PACKINGS:
        model = base(root, name, packing)
        expected = reference_losses(family_as_stored(root, name, packing), blocks)
        assert model.block_losses(blocks) == pytest.approx(expected, abs=LONE_TOLERANCE), packing
        assert 0 < abs(mean_loss(model, many) - exact) <= PACKED_TOLERANCE[packing]
        adapter = some_adapter(model, targets=None)
        model.set_parameters(adapter)
        moved = losses_moved(model, adapter, points, blocks)
        assert model.losses_at(points, blocks, 6) == pytest.approx(moved, abs=FP32_TOLERANCE), packing


@pytest.mark.smoke
@torch.inference_mode()
def test_releasing_pages_changes_no_bit(root: Path) -> None:
    blocks = random_blocks()
    for dtype in ("float32", "bfloat16", *PACKINGS):
        found = []
        for release in (False, True):
            model = LanguageModel(imported(root, "llama", dtype), release_pages=release)
            losses = model.block_losses(blocks)
            model.set_parameters(some_adapter(model, targets=None))
            found.append((losses, model.losses_at(sides(), blocks, 4), model.block_losses(blocks)))
        assert found[0] == found[1], dtype


@every_causal_family
@torch.inference_mode()
def test_next_logits_behind_a_cache_equal_one_forward(root: Path, name: str) -> None:
    ids = random_blocks(1, 3 * WINDOW).inputs
    starts = (0, WINDOW + 3, WINDOW + 4, 2 * WINDOW + 1)  # a prompt past the window, a token, more, and the rest
    for dtype in ("float32", "int8"):
        model, network = base(root, name, dtype, release=False), family_as_stored(root, name, dtype)
        cache = DynamicCache(config=model.network.config)
        for start, stop in zip(starts, (*starts[1:], ids.shape[1]), strict=True):
            logits = model.next_logits(ids[:, start:stop], cache)
            expected = network(input_ids=ids[:, :stop]).logits[0, -1].float()
            assert torch.allclose(logits, expected, rtol=0, atol=LOGIT_TOLERANCE), (dtype, start, stop)
