"""Gradients a layer at a time against transformers' own autograd through the whole model."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pocketllm.backprop.gradients import LayerwiseGradients, PassSize, Sums
from pocketllm.backprop.graph_layer import GraphLayer
from pocketllm.backprop.llama_layer import LlamaLayer
from pocketllm.backprop.method import fresh_adapter
from pocketllm.engine.data.batches import IGNORE_INDEX, batch_at, pack
from pocketllm.engine.data.examples import Example, encode
from pocketllm.engine.errors import TrainingDiverged, UnsupportedModel
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.formats.quantization import PACKINGS
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.context import ForwardContext
from pocketllm.engine.streamed.layers import LayerStack
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.backpropagation import (
    EXAMPLES,
    Parts,
    buckets_of,
    layers_adapter,
    layerwise,
    whole_gradients,
    worst_error,
)
from tests.support.models.learning import family, family_as_stored, imported, random_blocks, transformers_model
from tests.support.models.tiny_architectures import ARCHITECTURES, MASKED
from tests.support.models.tiny_models import byte_tokenizer

#: Sums in another order, in float64.
TOLERANCE = 1e-9
WHOLE = PassSize(stored=10_000, micro_batch=10_000)
#: Families whose layers are differentiated by hand.
BY_HAND = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


def model_of(root: Path, name: str, *, dtype: str = "float32") -> LanguageModel:
    return LanguageModel(imported(root, name, dtype), dtype=torch.float64, release_pages=True)


def parts_of(name: str) -> Parts:
    """Two batches of plain blocks, and examples of every kind; a model that fills in masks has padding, too."""
    is_mlm = name in MASKED
    parts = [(random_blocks(5, 20, lengths=[20, 13, 20, 9, 20] if is_mlm else None), 0.9), (random_blocks(2, 12), 0.1)]
    for kind in ("plain", "label") if is_mlm else EXAMPLES:  # it refuses to encode the others
        buckets = buckets_of(kind, is_mlm=is_mlm)
        assert kind != "label" or all(blocks.label_ids for blocks in buckets)
        assert kind == "plain" or any((blocks.targets == IGNORE_INDEX).any() for blocks in buckets)
        parts += [(blocks, 0.5) for blocks in buckets]
    return parts


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_every_kind_of_example_in_passes_of_any_size(root: Path, name: str) -> None:
    """By hand for layers of Llama's kind, which may also keep their activations; by autograd for the others."""
    model, parts = model_of(root, name), parts_of(name)
    adapter = layers_adapter(model)
    expected_losses, expected = whole_gradients(family(root, name), adapter, parts)
    sizes = [(10_000, 10_000, 0), (999, 40, 0), (60, 40, 0), (1, 1, 0)]
    if name in BY_HAND:
        sizes += [(999, 40, 99), (60, 40, 1)]
    for stored, micro_batch, kept in sizes:
        size = PassSize(stored=stored, micro_batch=micro_batch, kept=kept)
        losses, gradients = layerwise(model, adapter, size, parts)
        assert losses == pytest.approx(expected_losses, rel=TOLERANCE), size
        assert worst_error(gradients, expected) <= TOLERANCE, size
    layers = LayerwiseGradients(model, adapter, WHOLE)._layers
    assert {type(layer) for layer in layers} == {LlamaLayer if name in BY_HAND else GraphLayer}


def test_in_fp32_on_weights_as_they_are_stored(root: Path) -> None:
    """The products read the stored weights, so the adapter stays apart; kept activations are rounded to bfloat16."""
    model = LanguageModel(imported(root, "qwen2", "float32"), dtype=torch.float32)
    adapter, parts = layers_adapter(model, dtype=torch.float32), [(random_blocks(5, 20), 1.0)]
    _, expected = whole_gradients(family(root, "qwen2"), layers_adapter(model), parts)
    for kept, tolerance in ((0, 1e-4), (2, 0.02)):
        _, gradients = layerwise(model, adapter, replace(WHOLE, kept=kept), parts)
        assert worst_error(gradients, expected) <= tolerance, kept


def test_of_packed_weights(root: Path) -> None:
    """As of a float model of the same numbers."""
    parts = [(random_blocks(3, 20), 1.0)]
    for dtype in PACKINGS:
        model = model_of(root, "llama", dtype=dtype)
        adapter = layers_adapter(model)
        _, gradients = layerwise(model, adapter, WHOLE, parts)
        _, expected = whole_gradients(family_as_stored(root, "llama", dtype), adapter, parts)
        assert worst_error(gradients, expected) <= TOLERANCE, dtype


def test_of_an_adapter_of_some_maps_of_the_upper_layer(root: Path) -> None:
    """Nothing goes back below the lowest adapted layer, and a layer may have nothing to learn."""
    model, parts = model_of(root, "llama"), [(random_blocks(3, 20), 1.0)]
    whole = layers_adapter(model)
    for paths in (["model.layers.1.mlp.down_proj"], ["model.layers.0.self_attn.q_proj"]):
        adapter = replace(whole, a={p: whole.a[p] for p in paths}, b={p: whole.b[p] for p in paths})
        _, gradients = layerwise(model, adapter, WHOLE, parts)
        assert worst_error(gradients, whole_gradients(family(root, "llama"), adapter, parts)[1]) <= TOLERANCE


def with_adapter(root: Path) -> tuple[LanguageModel, Adapter]:
    """A Llama and the adapter that it runs with."""
    model = model_of(root, "llama")
    adapter = layers_adapter(model)
    model.set_parameters(adapter)
    return model, adapter


def test_the_way_of_a_pass_leaves_nothing_behind(root: Path) -> None:
    """Other passes, and other adapters, are as they were; gradients are taken under no_grad as a job runs them."""
    model, adapter = with_adapter(root)
    blocks = random_blocks(4, 20)
    before = model.block_losses(blocks)
    taken = LayerwiseGradients(model, adapter, WHOLE)
    with torch.no_grad():
        first, again = Sums(), Sums()
        assert taken([(blocks, 1.0)], first)
        assert model.block_losses(blocks) == before
        assert taken([(blocks, 1.0)], again)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_short_blocks_go_through_the_layers_in_larger_numbers(root: Path) -> None:
    gradients = LayerwiseGradients(*with_adapter(root), PassSize(stored=160, micro_batch=80))
    for length, sizes in ((80, [[1, 1], [1, 1], [1, 1], [1]]), (20, [[4, 4]]), (10, [[8]]), (200, [[1]] * 7)):
        passes = list(gradients._passes([random_blocks(7, length)]))
        assert [[len(some.blocks) for some in micro_batches] for micro_batches in passes] == sizes, length


def test_texts_of_many_lengths_make_few_shapes(root: Path) -> None:
    """torch keeps what it compiles for each shape."""
    gradients = LayerwiseGradients(*with_adapter(root), PassSize(stored=512, micro_batch=512))
    pairs = [Example("?" * length, "!") for length in range(1, 62)]
    buckets = encode(pairs, byte_tokenizer(), length=64, eos=0)
    shapes = {
        some.blocks.inputs.shape
        for step in range(1, 40)
        for micro_batches in gradients._passes([batch_at(buckets, step=step, size=7, seed=0)])
        for some in micro_batches
    }
    assert shapes <= {(blocks, width) for blocks in (1, 2, 4, 8) for width in (16, 32, 48, 64)}


def test_a_block_that_predicts_nothing_teaches_nothing(root: Path) -> None:
    model, blocks = model_of(root, "llama"), random_blocks(3, 20)
    adapter = layers_adapter(model)
    _, expected = layerwise(model, adapter, WHOLE, [(blocks[slice(0, 2)], 1.0)])
    blocks.targets[2] = IGNORE_INDEX
    _, gradients = layerwise(model, adapter, replace(WHOLE, micro_batch=1), [(blocks, 1.0)])
    assert worst_error(gradients, expected) <= TOLERANCE


@pytest.mark.slow
def test_the_real_smollm2(smollm2: ModelFolder) -> None:
    """On ordinary text, of which transformers' own gradients in bf16 are 0.99 like those in fp32 at the worst map."""
    bf16, fp32 = (LanguageModel(smollm2, dtype=dtype, release_pages=True) for dtype in (torch.bfloat16, torch.float32))
    text = files("pocketllm").joinpath("ordinary_text.txt").read_text(encoding="utf-8")
    parts = [(pack([smollm2.tokenizer()(text).input_ids], length=64, eos=0)[slice(0, 8)], 1.0)]
    adapter = fresh_adapter(fp32, rank=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    for b in adapter.b.values():
        b.normal_(0, 0.002, generator=generator)
    dense = transformers_model(smollm2.path, dtype=torch.float32)
    expected_losses, expected = whole_gradients(dense, adapter, parts)
    for model, kept, least in ((bf16, 0, 0.98), (bf16, 30, 0.98), (fp32, 30, 0.99)):
        size = PassSize(stored=512, micro_batch=256, kept=kept)
        losses, gradients = layerwise(model, adapter, size, parts)
        assert losses == pytest.approx(expected_losses, rel=5e-3)
        alike = {
            path: min(
                float(cosine_similarity(ours.flatten(), theirs.flatten(), dim=0))
                for ours, theirs in zip(gradients[path], expected[path], strict=True)
            )
            for path in expected
        }
        worst = sorted(alike.items(), key=lambda item: item[1])[:5]
        assert worst[0][1] >= least, (model.context.dtype, kept, worst)


def test_what_overflows_has_diverged_and_is_no_model_without_layers(tiny: ModelFolder) -> None:
    """As a model may in fp16, which is the fastest on many phones."""
    model = LanguageModel(tiny, dtype=torch.float16)
    adapter = layers_adapter(model, dtype=torch.float32)
    next(iter(adapter.b.values())).fill_(1e5)  # above fp16's largest number
    model.set_parameters(adapter)
    gradients = LayerwiseGradients(model, adapter, WHOLE)
    with pytest.raises(TrainingDiverged, match=r"training\.rate"):
        gradients([(random_blocks(3, 20), 1.0)], {})


def test_a_model_without_a_list_of_layers_is_refused(root: Path) -> None:
    model, adapter = with_adapter(root)
    network: Any = torch.nn.Module()
    network.config = model.network.config
    network.layers = torch.nn.ModuleList([torch.nn.Identity()])  # the config says that there are two
    unlisted: Any = SimpleNamespace(stack=LayerStack(network, {}, {}, ForwardContext(dtype=torch.float32)))
    assert unlisted.stack.count == 0
    with pytest.raises(UnsupportedModel, match="in none of the model's layers"):
        LayerwiseGradients(unlisted, adapter, WHOLE)
