"""The guide in every family: where the stream is, and gradients that are exact where the text says that they are."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache

from pocketllm.mezo.adapters import Adapter, load_adapter
from pocketllm.mezo.batches import Blocks, Entering
from pocketllm.mezo.descent import GivenDirection
from pocketllm.mezo.errors import UnsupportedModel
from pocketllm.mezo.estimator import Point
from pocketllm.mezo.feed_forward import FeedForward
from pocketllm.mezo.guide import Guidance, Guide
from pocketllm.mezo.loss import NO_TARGET
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.noise import Direction
from pocketllm.mezo.stream import Stream, find_stream
from tests.learning import (
    ALL_ROWS,
    FP32_TOLERANCE,
    equal,
    imported,
    losses_moved,
    mean_loss,
    random_blocks,
    reference_losses,
    sides,
    source_folder,
)
from tests.tiny_architectures import ARCHITECTURES, MASKED

#: Logits are up to 40 here, so that fp32's 2^-24 of them is 2e-6; a dozen roundings.
LOGIT_TOLERANCE = 3e-5
#: Of a gradient: sums in float32 over a hundred tokens, through a softmax.
GRADIENT_TOLERANCE = 3e-5
#: How far is looked along a unit vector: the third order is below 1e-4 of the slope, and so is fp32's rounding.
DISTANCE = 0.01

LLAMAS = ["self_attn.o_proj", "mlp.down_proj"]
OPTS = ["self_attn.out_proj", "fc2"]
GEMMAS = ["post_attention_layernorm", "post_feedforward_layernorm"]
#: The labels of `labelled`.
CHOICES = (5, 60, 61)

#: OPT as 350M is has no norm in front of its head: see the first test.
GUIDED = [name for name in ARCHITECTURES if name not in MASKED and name != "opt_projected"]
every_guided_one = pytest.mark.parametrize("name", GUIDED)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "architectures"


@cache
def model_of(root: Path, name: str, lanes: int = 1) -> LanguageModel:
    return LanguageModel(imported(root, name, "float32"), dtype=torch.float32, lanes=lanes)


def stream_of(model: LanguageModel) -> Stream:
    with torch.inference_mode():
        return find_stream(model.any_lane())


def guided_adapter(model: LanguageModel, paths: Iterable[str]) -> Adapter:
    """Of some maps and, with a rank of its own, of the head; it changes much, and scales by two."""
    a, b = {}, {}
    for number, path in enumerate([*paths, model.head_path]):
        weights = model.head.weights if path == model.head_path else model.linears[path].weights
        (out, width), rank = weights.weight.shape, 5 if path == model.head_path else 3
        a[path] = Direction(seed=1, step=1).of(number, (rank, width)) * 0.2
        b[path] = Direction(seed=1, step=2).of(number, (out, rank)) * 0.05
    alpha = 2.0 * len(next(iter(a.values())))
    return Adapter(base=model.native.manifest.name, alpha=alpha, a=a, b=b)


def merged(root: Path, name: str, adapter: Adapter) -> Any:
    """transformers' own model with weights W + scaling * B A; the head is no longer tied to the embeddings."""
    network: Any = AutoModelForCausalLM.from_pretrained(source_folder(root, name), attn_implementation="eager").eval()
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    with torch.no_grad():
        for path, a in adapter.a.items():
            network.get_submodule(path).weight += adapter.scaling * adapter.b[path] @ a
    return network


def labelled() -> Blocks:
    blocks = random_blocks()
    targets = torch.full_like(blocks.targets, NO_TARGET)
    targets[torch.arange(4), torch.tensor([0, 7, 11, 19])] = torch.tensor([60, 5, 61, 60])
    return replace(blocks, targets=targets, choices=CHOICES)


def look(
    model: LanguageModel, adapter: Adapter, blocks: Blocks, *, stream: Stream | None = None, rows: int = ALL_ROWS
) -> Guidance:
    stream = stream or stream_of(model)  # which takes the adapter away
    model.use(adapter)
    with torch.inference_mode():
        return Guide(model, stream, adapter).look(blocks, rows)


def slopes(model: LanguageModel, adapter: Adapter, seen: Guidance, blocks: Blocks) -> dict[str, float]:
    """The slope that the loss really has along each matrix' gradient, over the gradient's length: 1 where exact."""
    found = {}
    for number, path in enumerate(adapter.b):
        gradient = seen.gradients[path]
        size = float(gradient.norm())
        z = GivenDirection({number: gradient / size})
        points = [Point(direction=z, distance=side * DISTANCE) for side in (1, -1)]
        with torch.inference_mode():
            plus, minus = model.losses_at(points, blocks, ALL_ROWS)
        found[path] = (plus - minus) / (2 * DISTANCE) / size
    return found


def alike(one: Guidance, other: Guidance) -> bool:
    assert one.loss == pytest.approx(other.loss, abs=FP32_TOLERANCE)
    assert one.gradients.keys() == other.gradients.keys()
    return all(
        torch.allclose(gradient, other.gradients[path], rtol=0, atol=GRADIENT_TOLERANCE * float(gradient.abs().max()))
        for path, gradient in one.gradients.items()
    )


def exact_ones(model: LanguageModel, stream: Stream) -> list[str]:
    """Where the guide is no guess: the head, and the feed-forward block of the last layer, which writes last of all."""
    last = list(stream.writers)[-1]
    return [model.head_path, last, *stream.blocks[last].maps]


@every_guided_one
def test_finds_the_last_norm_and_the_maps_that_write(root: Path, name: str) -> None:
    model = model_of(root, name)
    stream = stream_of(model)
    layers = "model.decoder.layers" if name == "opt" else "model.layers"
    endings = OPTS if name == "opt" else LLAMAS
    assert stream.norm == ("model.decoder.final_layer_norm" if name == "opt" else "model.norm")
    assert list(stream.writers) == [f"{layers}.{number}.{ending}" for number in range(2) for ending in endings]
    behind = [f"{layers}.{number}.{norm}" for number in range(2) for norm in GEMMAS] if name == "gemma3_text" else []
    assert [norm for norm in stream.writers.values() if norm is not None] == behind == list(stream.jacobians)
    assert stream.width == 64
    assert stream.jacobian.centred == (name == "opt")
    gain = dict(model.network.get_submodule(stream.norm).named_parameters())["weight"].float()
    assert torch.allclose(stream.jacobian.gain, gain + (name == "gemma3_text"), atol=1e-5)


@every_guided_one
def test_finds_the_feed_forward_blocks(root: Path, name: str) -> None:
    model = model_of(root, name)
    stream = stream_of(model)
    assert list(stream.blocks) == [path for path in stream.writers if path.endswith(("down_proj", "fc2"))]
    for writer, block in stream.blocks.items():
        prefix = writer.rpartition(".")[0]
        if name == "opt":
            assert block == FeedForward(function=f"{prefix}.activation_fn", through=f"{prefix}.fc1", beside=None)
        else:
            gated = [f"{prefix}.{ending}" for ending in ("act_fn", "gate_proj", "up_proj")]
            assert block == FeedForward(function=gated[0], through=gated[1], beside=gated[2])
    assert set(stream.led_to) == {*stream.writers, *(path for block in stream.blocks.values() for path in block.maps)}


def test_a_model_without_a_norm_in_front_of_its_head_is_refused_with_what_to_do(root: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"training\.method = mezo"):
        stream_of(model_of(root, "opt_projected"))


def test_looking_for_the_stream_leaves_no_hook_and_no_adapter_behind(root: Path) -> None:
    model = model_of(root, "llama")
    adapter = guided_adapter(model, stream_of(model).led_to)
    model.use(adapter)
    stream_of(model)
    assert all(linear.low_rank is None for linear in model.linears.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())
    look(model, adapter, random_blocks(1, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())
    assert model.walk.recorded is None


@every_guided_one
@pytest.mark.parametrize("make", [random_blocks, labelled])
def test_the_loss_is_the_models_and_the_gradients_follow_it(root: Path, name: str, make: Any) -> None:
    model, blocks = model_of(root, name), make()
    stream = stream_of(model)
    adapter = guided_adapter(model, stream.led_to)
    seen = look(model, adapter, blocks, stream=stream)
    with torch.inference_mode():
        assert seen.loss == pytest.approx(mean_loss(model, blocks), abs=FP32_TOLERANCE)
    assert {path: gradient.shape for path, gradient in seen.gradients.items()} == {
        path: b.shape for path, b in adapter.b.items()
    }
    found = slopes(model, adapter, seen, blocks)
    for path in exact_ones(model, stream):
        assert found[path] == pytest.approx(1, abs=1e-3), path
    # The others are guesses, and these models are random: no layer of theirs is made to add little to what it is given.
    assert sum(slope > 0 for slope in found.values()) > len(found) / 2, found


@every_guided_one
@pytest.mark.parametrize("choices", [None, CHOICES])
def test_exact_gradients_are_those_of_autograd(root: Path, name: str, choices: tuple[int, ...] | None) -> None:
    model, blocks = model_of(root, name), random_blocks() if choices is None else labelled()
    stream = stream_of(model)
    adapter = guided_adapter(model, stream.led_to)
    seen = look(model, adapter, blocks, stream=stream)
    network = merged(root, name, adapter)
    logits = network(input_ids=blocks.inputs).logits
    if choices is not None:
        others = torch.ones(logits.shape[-1], dtype=torch.bool).index_fill_(0, torch.tensor(choices), False)
        logits = logits.masked_fill(others, float("-inf"))
    F.cross_entropy(logits.transpose(1, 2), blocks.targets, ignore_index=NO_TARGET).backward()  # type: ignore[no-untyped-call]
    for path in exact_ones(model, stream):
        expected = adapter.scaling * network.get_submodule(path).weight.grad @ adapter.a[path].t()
        found = seen.gradients[path]
        assert float((found - expected).norm()) < GRADIENT_TOLERANCE * float(expected.norm()), path


@every_guided_one
def test_lanes_and_rows_at_once_make_no_difference(root: Path, name: str) -> None:
    model = model_of(root, name)
    adapter = guided_adapter(model, stream_of(model).led_to)
    for blocks in (random_blocks(5), labelled()):
        whole = look(model, adapter, blocks)
        for lanes, rows in [(1, 1), (1, 2), (2, 1), (2, 3), (2, ALL_ROWS)]:
            assert alike(whole, look(model_of(root, name, lanes), adapter, blocks, rows=rows)), (lanes, rows)


@every_guided_one
@pytest.mark.parametrize("lanes", [1, 2])
def test_blocks_that_begin_at_the_lowest_adapted_layer_are_guided_alike(root: Path, name: str, lanes: int) -> None:
    model = model_of(root, name, lanes)
    stream = stream_of(model)
    adapter = guided_adapter(model, [path for path in stream.led_to if model.stack.number_of(path) == 1])
    for blocks in (random_blocks(5), labelled()):
        whole = look(model, adapter, blocks, stream=stream)
        with torch.inference_mode():
            begun = replace(blocks, entering=Entering(1, model.entering(blocks, 1)))
        assert alike(whole, look(model, adapter, begun, stream=stream, rows=2))


def test_a_look_forgets_the_one_before(root: Path) -> None:
    model = model_of(root, "llama")
    stream = stream_of(model)
    adapter = guided_adapter(model, stream.led_to)
    model.use(adapter)
    with torch.inference_mode():
        guide = Guide(model, stream, adapter)
        guide.look(random_blocks(), ALL_ROWS)
        again = guide.look(random_blocks(3, 7), ALL_ROWS)
    assert alike(look(model, adapter, random_blocks(3, 7)), again)


def test_without_targets_there_is_no_loss_and_no_gradient(root: Path) -> None:
    model, blocks = model_of(root, "gemma3_text"), random_blocks(2)
    blocks.targets.fill_(NO_TARGET)
    seen = look(model, guided_adapter(model, stream_of(model).led_to), blocks)
    assert seen.loss == 0
    assert not any(gradient.count_nonzero() for gradient in seen.gradients.values())


class TestHeadAdapter:
    """An adapter of the output head is a head whose weight is W + scaling * B A."""

    @every_guided_one
    @torch.inference_mode()
    def test_losses_are_those_of_transformers_with_the_merged_weights(self, root: Path, name: str) -> None:
        model = model_of(root, name)
        adapter = guided_adapter(model, ())
        model.use(adapter)
        network = merged(root, name, adapter)
        for blocks in (random_blocks(), labelled()):
            expected = reference_losses(network, blocks, blocks.choices)
            assert model.block_losses(blocks) == pytest.approx(expected, abs=2 * FP32_TOLERANCE)
            points = sides(0.01, probes=2)
            moved = losses_moved(model, adapter, points, blocks)
            for rows in (2, ALL_ROWS):
                assert model.losses_at(points, blocks, rows) == pytest.approx(moved, abs=FP32_TOLERANCE)
            # What is compared differs by much more than the tolerance.
            assert max(moved) - min(moved) > 300 * FP32_TOLERANCE

    @every_guided_one
    @torch.inference_mode()
    def test_next_logits_are_those_of_transformers_with_the_merged_weights(self, root: Path, name: str) -> None:
        model, ids = model_of(root, name), random_blocks(1, 12).inputs
        adapter = guided_adapter(model, list(model.linears)[:2])
        model.use(adapter)
        expected = merged(root, name, adapter)(input_ids=ids).logits[0]
        cache = DynamicCache(config=model.network.config)
        for start, stop in [(0, 9), (9, 10), (10, 12)]:  # a prompt, a token, more
            logits = model.next_logits(ids[:, start:stop], cache)
            assert torch.allclose(logits, expected[stop - 1], rtol=0, atol=LOGIT_TOLERANCE), (start, stop)

    # PEFT 0.21 asks transformers 5.24 under a name that the latter has deprecated.
    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
    # It says that a head tied to the embeddings cannot be merged; nobody does.
    @pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
    @every_guided_one
    def test_peft_loads_an_adapter_whose_head_has_a_rank_of_its_own(
        self, root: Path, name: str, tmp_path: Path
    ) -> None:
        model, ids = model_of(root, name), random_blocks(1, 12).inputs
        adapter = guided_adapter(model, stream_of(model).led_to)
        adapter.save(tmp_path / "adapter")
        assert equal(load_adapter(tmp_path / "adapter"), adapter)
        base = AutoModelForCausalLM.from_pretrained(source_folder(root, name))
        with torch.inference_mode():
            theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits[0, -1]
            model.use(adapter)
            ours = model.next_logits(ids, DynamicCache(config=model.network.config))
        assert torch.allclose(ours, theirs, rtol=0, atol=LOGIT_TOLERANCE)
