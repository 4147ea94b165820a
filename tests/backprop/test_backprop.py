"""Gradients a layer at a time against transformers' own autograd through the whole model."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer

from pocketllm.backprop.gradients import Gradients, LayerwiseGradients, PassSize
from pocketllm.backprop.graph_layer import GraphLayer
from pocketllm.backprop.llama_layer import LlamaLayer
from pocketllm.backprop.method import fresh_adapter
from pocketllm.engine.data.batches import batch_at, pack
from pocketllm.engine.data.examples import Example, encode
from pocketllm.engine.errors import AdapterError, TrainingDiverged, UnsupportedModel
from pocketllm.engine.formats.importer import default_source, import_model
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.streamed.layers import LayerStack
from pocketllm.engine.streamed.loss import IGNORE_INDEX
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.modules import ForwardContext
from tests.support.backpropagation import (
    EXAMPLES,
    Parts,
    buckets_of,
    family,
    layers_adapter,
    layerwise,
    transformers_model,
    whole_gradients,
    with_weights,
    worst_error,
)
from tests.support.learning import imported, random_blocks, some_adapter
from tests.support.tiny_architectures import ARCHITECTURES, MASKED, dense_tensors
from tests.support.tiny_models import byte_tokenizer

#: Sums in another order, in float64.
TOLERANCE = 1e-9
WHOLE = PassSize(stored=10_000, micro_batch=10_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "architectures"


def model_of(root: Path, name: str, *, dtype: str = "float32") -> LanguageModel:
    return LanguageModel(imported(root, name, dtype), dtype=torch.float64, release_pages=True)


def check(root: Path, name: str, model: LanguageModel, size: PassSize, parts: Parts) -> None:
    adapter = layers_adapter(model)
    losses, gradients = layerwise(model, adapter, size, parts)
    expected_losses, expected = whole_gradients(family(root, name), adapter, parts)
    assert losses == pytest.approx(expected_losses, rel=TOLERANCE)
    assert worst_error(gradients, expected) <= TOLERANCE


def padded(name: str) -> list[int] | None:
    """A model that fills in masks is told where padding begins."""
    return [20, 13, 20, 9, 20] if name in MASKED else None


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_of_every_family_and_every_kind_of_example(root: Path, name: str, kind: str) -> None:
    if name in MASKED and kind in ("completion", "chat"):
        return  # refused when they are encoded
    buckets = buckets_of(kind, is_mlm=name in MASKED)
    assert kind != "label" or all(blocks.label_ids for blocks in buckets)
    assert kind == "plain" or any((blocks.targets == IGNORE_INDEX).any() for blocks in buckets)
    check(root, name, model_of(root, name), WHOLE, [(blocks, 1.0) for blocks in buckets])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("stored", "micro_batch"), [(999, 999), (999, 40), (60, 40), (1, 1)], ids=["whole", "parts", "passes", "single"]
)
def test_of_a_batch_of_two_weighted_parts_in_passes_of_any_size(
    root: Path, name: str, stored: int, micro_batch: int
) -> None:
    size = PassSize(stored=stored, micro_batch=micro_batch)
    parts = [(random_blocks(5, 20, lengths=padded(name)), 0.9), (random_blocks(2, 12), 0.1)]
    check(root, name, model_of(root, name), size, parts)


#: Families whose layers are differentiated by hand.
BY_HAND = ("llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_of_llamas_kind_are_differentiated_by_hand(root: Path, name: str) -> None:
    model = model_of(root, name)
    adapter = layers_adapter(model)
    model.set_parameters(adapter)
    layers = LayerwiseGradients(model, adapter, WHOLE)._layers
    assert {type(layer) for layer in layers} == {LlamaLayer if name in BY_HAND else GraphLayer}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("kept", [1, 2, 99])
@pytest.mark.parametrize(("stored", "micro_batch"), [(999, 40), (60, 40)], ids=["parts", "passes"])
def test_kept_activations_change_no_gradient(root: Path, name: str, kept: int, stored: int, micro_batch: int) -> None:
    size = PassSize(stored=stored, micro_batch=micro_batch, kept=kept)
    parts = [(random_blocks(5, 20), 0.9), (random_blocks(2, 12), 0.1)]
    check(root, name, model_of(root, name), size, parts)


@pytest.mark.parametrize("kept", [0, 2])
def test_in_fp32_on_weights_as_they_are_stored(root: Path, kept: int) -> None:
    """The products read the stored weights, so the adapter stays apart; kept activations are rounded to bfloat16."""
    model = LanguageModel(imported(root, "qwen2", "float32"), dtype=torch.float32)
    adapter, parts = layers_adapter(model, dtype=torch.float32), [(random_blocks(5, 20), 1.0)]
    _, gradients = layerwise(model, adapter, replace(WHOLE, kept=kept), parts)
    _, expected = whole_gradients(family(root, "qwen2"), layers_adapter(model), parts)
    assert worst_error(gradients, expected) <= (0.02 if kept else 1e-4)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_of_packed_weights(root: Path, dtype: str) -> None:
    """As of a float model of the same numbers."""
    parts = [(random_blocks(3, 20), 1.0)]
    model = model_of(root, "llama", dtype=dtype)
    adapter = layers_adapter(model)
    _, gradients = layerwise(model, adapter, WHOLE, parts)
    dense = with_weights(family(root, "llama"), dense_tensors(imported(root, "llama", dtype).path))
    dense.tie_weights()
    _, expected = whole_gradients(dense, adapter, parts)
    assert worst_error(gradients, expected) <= TOLERANCE


def test_of_an_adapter_of_some_maps_of_the_upper_layer(root: Path) -> None:
    """Nothing goes back below the lowest adapted layer, and a layer may have nothing to learn."""
    model, parts = model_of(root, "llama"), [(random_blocks(3, 20), 1.0)]
    whole = layers_adapter(model)
    for paths in (["model.layers.1.mlp.down_proj"], ["model.layers.0.self_attn.q_proj"]):
        adapter = replace(whole, a={p: whole.a[p] for p in paths}, b={p: whole.b[p] for p in paths})
        _, gradients = layerwise(model, adapter, WHOLE, parts)
        assert worst_error(gradients, whole_gradients(family(root, "llama"), adapter, parts)[1]) <= TOLERANCE


@pytest.mark.parametrize("stored", [999, 1], ids=["one pass", "many passes"])
def test_each_layer_is_told_once_from_the_top_and_may_change_what_is_told(root: Path, stored: int) -> None:
    """A layer's update on the way back is no part of the gradients of those below."""
    model = model_of(root, "llama")
    adapter, parts = layers_adapter(model), [(random_blocks(3, 20), 1.0)]
    expected = whole_gradients(family(root, "llama"), adapter, parts)[1]
    told: list[Gradients] = []

    def on_layer(gradients: Gradients) -> None:
        told.append({path: (a.clone(), b.clone()) for path, (a, b) in gradients.items()})
        for path in gradients:
            adapter.a[path].add_(1)
            adapter.b[path].add_(1)

    model.set_parameters(adapter)
    LayerwiseGradients(model, adapter, replace(WHOLE, stored=stored))(parts, on_layer)
    assert [{model.stack.number_of(path) for path in some} for some in told] == [{1}, {0}]
    assert worst_error({**told[0], **told[1]}, expected) <= TOLERANCE


def test_the_way_of_a_pass_leaves_nothing_behind(root: Path) -> None:
    """Other passes, and other adapters, are as they were; gradients are taken under no_grad as a job runs them."""
    model, blocks = model_of(root, "llama"), random_blocks(4, 20)
    adapter = layers_adapter(model)
    model.set_parameters(adapter)
    before = model.block_losses(blocks)
    taken = LayerwiseGradients(model, adapter, WHOLE)
    with torch.no_grad():
        first: Gradients = {}
        taken([(blocks, 1.0)], first.update)
        assert model.block_losses(blocks) == before
        again: Gradients = {}
        taken([(blocks, 1.0)], again.update)
    assert all(torch.equal(x, y) for path in first for x, y in zip(first[path], again[path], strict=True))


def test_short_blocks_go_through_the_layers_in_larger_numbers(root: Path) -> None:
    model = model_of(root, "llama")
    adapter = layers_adapter(model)
    model.set_parameters(adapter)
    gradients = LayerwiseGradients(model, adapter, PassSize(stored=160, micro_batch=80))
    for length, sizes in ((80, [[1, 1], [1, 1], [1, 1], [1]]), (20, [[4, 4]]), (10, [[8]]), (200, [[1]] * 7)):
        passes = list(gradients._passes([random_blocks(7, length)]))
        assert [[len(some.blocks) for some in micro_batches] for micro_batches in passes] == sizes, length


def test_texts_of_many_lengths_make_few_shapes(root: Path) -> None:
    """torch keeps what it compiles for each shape."""
    model = model_of(root, "llama")
    adapter = layers_adapter(model)
    model.set_parameters(adapter)
    gradients = LayerwiseGradients(model, adapter, PassSize(stored=512, micro_batch=512))
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
@pytest.mark.parametrize(
    ("dtype", "kept", "least"), [("bfloat16", 0, 0.98), ("bfloat16", 30, 0.98), ("float32", 30, 0.99)]
)
def test_the_real_smollm2(tmp_path_factory: pytest.TempPathFactory, dtype: str, kept: int, least: float) -> None:
    """On ordinary text, of which transformers' own gradients in bf16 are 0.99 like those in fp32 at the worst map."""
    model_folder = real_model(tmp_path_factory.mktemp("models"))
    model = LanguageModel(model_folder, dtype=getattr(torch, dtype), release_pages=True)
    tokenizer = AutoTokenizer.from_pretrained(model_folder.path)
    text = files("pocketllm").joinpath("ordinary_text.txt").read_text(encoding="utf-8")
    blocks = pack([tokenizer(text)["input_ids"]], length=64, eos=0)[slice(0, 8)]
    adapter = fresh_adapter(model, rank=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    for b in adapter.b.values():
        b.normal_(0, 0.002, generator=generator)
    losses, gradients = layerwise(model, adapter, PassSize(stored=512, micro_batch=256, kept=kept), [(blocks, 1.0)])
    dense = transformers_model(model_folder.path, is_mlm=False, dtype=torch.float32)
    expected_losses, expected = whole_gradients(dense, adapter, [(blocks, 1.0)])
    assert losses == pytest.approx(expected_losses, rel=5e-3)
    alike = {
        path: min(
            float(cosine_similarity(ours.flatten(), theirs.flatten(), dim=0))
            for ours, theirs in zip(gradients[path], expected[path], strict=True)
        )
        for path in expected
    }
    assert min(alike.values()) >= least, sorted(alike.items(), key=lambda item: item[1])[:5]


def real_model(folder: Path) -> ModelFolder:
    import_model(default_source(), folder, name="smollm2", dtype="bfloat16")
    return open_model_folder(folder / "smollm2")


@pytest.mark.parametrize("stored", [999, 1], ids=["one pass", "in its first pass"])
def test_a_loss_that_is_no_number_changes_nothing(root: Path, stored: int) -> None:
    model = model_of(root, "llama")
    adapter = layers_adapter(model)
    model.set_parameters(adapter)
    gradients = LayerwiseGradients(model, adapter, replace(WHOLE, stored=stored))
    adapter.b["model.layers.1.mlp.down_proj"][0, 0] = float("nan")
    told: list[Gradients] = []
    with pytest.raises(TrainingDiverged, match=r"smaller training\.rate"):
        gradients([(random_blocks(3, 20), 1.0)], told.append)
    assert not told


def test_an_adapter_of_the_head_is_refused(root: Path) -> None:
    model = model_of(root, "qwen2")
    adapter = some_adapter(model)
    adapter.a["lm_head"], adapter.b["lm_head"] = torch.zeros(4, 64), torch.zeros(263, 4)
    with pytest.raises(AdapterError, match="has no lm_head"):
        model.set_parameters(adapter)


def test_what_overflows_has_diverged_and_is_no_model_without_layers(tiny: ModelFolder) -> None:
    """As a model may in fp16, which is the fastest on many phones."""
    model = LanguageModel(tiny, dtype=torch.float16)
    adapter = layers_adapter(model, dtype=torch.float32)
    next(iter(adapter.b.values())).fill_(1e5)  # above fp16's largest number
    model.set_parameters(adapter)
    gradients, told = LayerwiseGradients(model, adapter, WHOLE), list[Gradients]()
    with pytest.raises(TrainingDiverged, match=r"training\.rate"):
        gradients([(random_blocks(3, 20), 1.0)], told.append)
    assert not told


def test_a_model_without_a_list_of_layers_is_refused(root: Path) -> None:
    model = model_of(root, "llama")
    network: Any = torch.nn.Module()
    network.config = model.network.config
    network.layers = torch.nn.ModuleList([torch.nn.Identity()])  # the config says that there are two
    unlisted: Any = SimpleNamespace(stack=LayerStack(network, {}, {}, None, ForwardContext(dtype=torch.float32)))
    with pytest.raises(UnsupportedModel, match="in none of the model's layers"):
        LayerwiseGradients(unlisted, layers_adapter(model), WHOLE)
