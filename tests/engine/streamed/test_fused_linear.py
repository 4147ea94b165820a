"""Products of one token with weights that lie behind each other: the same numbers, by fewer products."""

from pathlib import Path

import pytest
import torch

from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.streamed.fused_linear import FusedLinear
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.weights import Weight, adjacent, open_weights
from tests.support.tiny_models import tiny_model_folder

ATTENTION = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]


@pytest.fixture
def weights(tiny: ModelFolder) -> dict[str, Weight]:
    return open_weights(tiny.weights)


def products(fused: FusedLinear, some: list[Weight], x: torch.Tensor) -> list[torch.Tensor]:
    return [fused.product(x, weight, weight.floats) for weight in some]


def separate(some: list[Weight], x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.nn.functional.linear(x, weight.floats) for weight in some]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@torch.inference_mode()
def test_neighbours_that_take_in_the_same_are_one_product_from_the_second_token_on(weights: dict[str, Weight]) -> None:
    fused, some = FusedLinear(), [weights[name] for name in ATTENTION]
    for number in range(3):
        x = torch.randn(1, 1, some[0].shape[1], generator=torch.Generator().manual_seed(number))
        found = products(fused, some, x)
        assert_equal(found, separate(some, x))
        storages = {one.untyped_storage().data_ptr() for one in found}
        assert len(storages) == (3 if number == 0 else 1)


@torch.inference_mode()
def test_each_gets_its_own_product_whatever_is_asked(weights: dict[str, Weight]) -> None:
    fused, (q, k, v) = FusedLinear(), [weights[name] for name in ATTENTION]
    x, y = torch.randn(2, 1, 1, q.shape[1], generator=torch.Generator().manual_seed(0)).unbind()
    for some, token in [([q, k, v], x), ([q, v], y), ([k], x), ([q], x), ([k, v], y), ([q, q], x), ([q, k, v], y)]:
        assert_equal(products(fused, some, token), separate(some, token))


@torch.inference_mode()
def test_weights_that_were_taken_into_memory_are_not_what_the_file_holds(weights: dict[str, Weight]) -> None:
    fused, some = FusedLinear(), [weights[name] for name in ATTENTION]
    x = torch.randn(1, 1, some[0].shape[1], generator=torch.Generator().manual_seed(0))
    products(fused, some, x)
    for weight in some:
        weight.load(torch.float32).mul_(2)
    for _ in range(2):
        assert_equal(products(fused, some, x), separate(some, x))


def test_only_neighbours_of_a_kind_are_joined(tmp_path: Path, weights: dict[str, Weight]) -> None:
    q, k, v = (weights[name] for name in ATTENTION)
    joint = adjacent([q, k, v])
    assert joint is not None and torch.equal(joint, torch.cat([q.floats, k.floats, v.floats]))
    assert adjacent([q, v]) is None and adjacent([k, q]) is None
    assert adjacent([weights["model.layers.0.input_layernorm.weight"]]) is None
    again = open_weights(open_model_folder(tiny_model_folder(tmp_path / "other", dtype="float32")).weights)
    assert adjacent([q, again[ATTENTION[1]]]) is None, "another file"
    packed = open_weights(open_model_folder(tiny_model_folder(tmp_path / "packed", dtype="int8", hidden=64)).weights)
    assert adjacent([packed[name] for name in ATTENTION]) is None
    k.load(torch.float32)
    assert adjacent([q, k, v]) is None


def test_a_models_maps_are_joined(tiny: ModelFolder) -> None:
    from transformers import DynamicCache

    model = LanguageModel(tiny)
    cache = DynamicCache(config=model.network.config)
    with torch.inference_mode():
        for token in (5, 6):
            model.next_logits(torch.tensor([[token]]), cache)
    runs = [len(run.weights) for run in model.context.fused._runs.values()]
    layers = model.stack.count
    assert sorted(runs) == [1] * 2 * layers + [2] * layers + [3] * layers
