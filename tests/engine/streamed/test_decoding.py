"""Decoding a few tokens by few operations: the logits of one forward pass over all of them."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.families import LLAMA_FAMILIES
from pocketllm.engine.streamed.model import DECODED_TOKENS, LanguageModel
from pocketllm.engine.streamed.weights import Weight, adjacent, open_weights
from tests.support.models.learning import imported, some_adapter
from tests.support.models.tiny_models import tiny_model_folder

ATTENTION = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
IDS = torch.randint(3, 250, (1, DECODED_TOKENS + 12), generator=torch.Generator().manual_seed(1))
#: Logits are up to 40 here; of bf16 the relative rounding is 2^-8, of fp32 2^-24.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 0.5}


def assert_decoded_as_one_pass(model: LanguageModel, dtype: torch.dtype = torch.float32) -> None:
    """Behind a prompt too long to be decoded: a token, another one, and four together."""
    cache, start = DynamicCache(config=model.network.config), DECODED_TOKENS + 1
    model.next_logits(IDS[:, :start], cache)
    for stop in (start + 1, start + 2, start + 6):
        logits = model.next_logits(IDS[:, start:stop], cache)
        expected = model.next_logits(IDS[:, :stop], DynamicCache(config=model.network.config))
        assert torch.allclose(logits, expected, rtol=0, atol=TOLERANCE[dtype]), stop
        start = stop


@pytest.mark.parametrize(
    ("name", "stored", "dtype"),
    [
        ("llama", "bfloat16", torch.bfloat16),
        ("llama", "bfloat16", torch.float32),
        ("llama", "int8", torch.float32),
        *((name, "float32", torch.float32) for name in LLAMA_FAMILIES),
    ],
)
@torch.inference_mode()
def test_each_kind_with_and_without_an_adapter(root: Path, name: str, stored: str, dtype: torch.dtype) -> None:
    model = LanguageModel(imported(root, name, stored), dtype=dtype)
    assert model.network.config.model_type in LLAMA_FAMILIES
    for adapter in (some_adapter(model, targets=None), some_adapter(model, targets=("k_proj", "up_proj")), None):
        model.set_parameters(adapter)
        assert_decoded_as_one_pass(model, dtype)


def following(model: LanguageModel, adapter: Adapter | None) -> torch.Tensor:
    model.set_parameters(adapter)
    return model.next_logits(IDS[:, :3], DynamicCache(config=model.network.config))


@torch.inference_mode()
def test_another_adapter_is_followed_and_what_training_changes_in_place(tiny: ModelFolder) -> None:
    model = LanguageModel(tiny)
    adapter, other = some_adapter(model), some_adapter(model, size=0.3)
    before = following(model, adapter)
    assert not torch.allclose(following(model, other), before, atol=0.1)
    assert torch.equal(following(model, adapter), before)
    model.next_logits(IDS, DynamicCache())  # as a step's forward pass
    for b in adapter.b.values():
        b.mul_(3)
    changed = following(model, adapter)
    assert torch.allclose(changed, following(model, other), atol=TOLERANCE[torch.float32])


def test_weights_that_were_taken_into_memory_are_trained_in_place(tiny: ModelFolder) -> None:
    model = LanguageModel(tiny)
    before = following(model, None)
    full = model.full()
    model.set_parameters(full)
    for tensor in full.tensors.values():
        tensor.mul_(0.9)
    with torch.inference_mode():
        assert_decoded_as_one_pass(model)
    assert not torch.allclose(following(model, None), before, atol=0.1)


def test_only_neighbours_of_a_kind_are_joined(tmp_path: Path, tiny: ModelFolder) -> None:
    weights: dict[str, Weight] = open_weights(tiny.weights)
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
