"""Modules without weights: what they compute at several points at once, what they leave alone, and what they hold."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pocketllm.daemon.process_memory import bytes_of
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.formats.quantization import PACKINGS, pack, unpack
from pocketllm.engine.noise import Kind, Perturbation
from pocketllm.engine.streamed.context import ForwardContext
from pocketllm.engine.streamed.head import HEAD_MARK, StreamedHead
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.modules import StreamedEmbedding, perturbed_forward
from pocketllm.engine.streamed.weights import MIN_ROWS, Weight
from tests.support.models.learning import fresh_process, imported, random_blocks, sides, some_adapter
from tests.support.models.tiny_models import tiny_model_folder

#: Sums of some dozen products of numbers of size 1, in another order.
TOLERANCE = 1e-5
KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")
MB = 10**6


def context_at(points: list[Perturbation]) -> ForwardContext:
    return ForwardContext(dtype=torch.float32, perturbations=points)


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_of(tensor: torch.Tensor, number: int | None = None) -> Weight:
    weight = Weight(tensor.shape, {"": tensor})
    weight.number = number
    return weight


def at(tensor: torch.Tensor, point: Perturbation, number: int) -> torch.Tensor:
    return torch.add(tensor, point.direction.of(number, tensor.shape), alpha=point.distance)


def assembled(weight: Weight, context: ForwardContext) -> list[torch.Tensor]:
    """What a weight's chunks make up, for each part."""
    whole, done = list[torch.Tensor](), 0
    for rows, values in weight.chunks(context):
        assert rows.start == done
        whole = whole or [torch.empty(weight.shape) for _ in values]
        for into, value in zip(whole, values, strict=True):
            into[rows] = value
        done = rows.stop
    assert done == weight.shape[0]
    return whole


def test_a_matrix_at_each_point_is_moved_exactly() -> None:
    """Whatever the chunks that it is made in; several directions follow each other through the same scratches."""
    shapes = (
        (1, 1),
        (3, 5),
        (MIN_ROWS, 2100),
        (2 * MIN_ROWS + 1, 2100),  # the last row is a chunk of its own
        (300, 1001),
    )
    for kind, probes, shape in product(KINDS, (0, 1, 2), shapes):
        dense, points = floats(*shape), sides(0.1, probes=probes, kind=kind)
        before = dense.clone()
        values = assembled(weight_of(dense, 9), context_at(points))
        for value, expected in zip(values, [at(dense, p, 9) for p in points] or [dense], strict=True):
            assert torch.equal(value, expected), (kind, probes, shape)
        assert torch.equal(dense, before), (kind, probes, shape)


def test_a_packed_matrix_is_made_dense_in_chunks() -> None:
    for packing, rows in product(PACKINGS, (5, MIN_ROWS, 2 * MIN_ROWS + 1)):
        parts = pack(floats(rows, 2048), packing)
        weight, context = Weight((rows, 2048), parts), context_at(sides())
        (value,) = assembled(weight, context)
        assert torch.equal(value, unpack(parts, torch.empty(rows, 2048))), (packing, rows)
        assert len(list(weight.chunks(context))) == -(-rows // MIN_ROWS), (packing, rows)


def test_a_weight_that_is_not_trained_is_one_for_all_points() -> None:
    dense, context = floats(4, 5), context_at(sides())
    weight = weight_of(dense)
    assert [(rows, [v.data_ptr() for v in values]) for rows, values in weight.chunks(context)] == [
        (slice(0, 4), [dense.data_ptr()])
    ]
    assert [value is dense for value in weight.whole(context, 2)] == [True, True]


def test_an_embedding_makes_the_words_at_hand_dense() -> None:
    """Also when all of them come before the padding word, which the small table then does not reach."""
    table, points = floats(99, 8), sides(0.1, probes=2)
    ids = torch.tensor([[5, 0, 5], [7, 7, 7], [0, 1, 2], [6, 5, 4], [98, 90, 0], [1, 1, 1], [3, 2, 1], [0, 0, 0]])
    for padding, trained, words in product((None, 0, 90), (False, True), (ids, ids % 8)):
        weight = weight_of(table, 3 if trained else None)
        embedding = StreamedEmbedding(context_at(points), weight, nn.Embedding(99, 8, padding_idx=padding))
        tables = [at(table, point, 3) if trained else table for point in points]
        expected = [there[part] for there, part in zip(tables, words.chunk(4), strict=True)]
        assert torch.equal(embedding(words), torch.cat(expected)), (padding, trained)
        assert all(parameter is None for parameter in embedding._inner._parameters.values())


def test_the_head_keeps_what_it_sees_and_gives_rows_at_a_point() -> None:
    w, b = floats(50, 8), floats(50, seed=1)
    head = StreamedHead(context_at([]), weight_of(w, 5), weight_of(b, 6))
    hidden = floats(2, 3, 8, seed=2)
    assert head(hidden).eq(HEAD_MARK).all()
    assert head.input is hidden
    words = torch.tensor([49, 3, 3, 0])
    points = [sides(0.1, kind=kind)[0] for kind in KINDS]
    for place, expected, bias in ((None, w, b), *((point, at(w, point, 5), at(b, point, 6)) for point in points)):
        here = head.at(place)
        assert here.vocabulary == 50
        assert here.bias is not None
        assert torch.equal(here.bias, bias)
        assert torch.equal(here.rows(10, 50).clone(), expected[10:])
        assert torch.equal(here.gather(words), expected[words])


def test_small_modules_take_each_part_through_its_point() -> None:
    points = sides(0.1, probes=2)
    context = context_at(points)
    context.rows = 8
    norm, places = nn.LayerNorm(6), nn.Embedding(9, 6)
    w, b, table = floats(6), floats(6, seed=1), floats(9, 6, seed=2)
    trained = {"weight": weight_of(w, 1), "bias": weight_of(b, 2)}
    x = floats(8, 3, 6, seed=3)
    expected = [
        nn.functional.layer_norm(part, (6,), at(w, point, 1), at(b, point, 2))
        for part, point in zip(x.chunk(4), points, strict=True)
    ]
    assert torch.allclose(perturbed_forward(norm, trained, context)(x), torch.cat(expected), atol=TOLERANCE)

    # A position table is often asked once for all rows of the batch.
    found = perturbed_forward(places, {"weight": weight_of(table, 3)}, context)(torch.tensor([[4, 0, 8]]))
    assert torch.equal(found, torch.cat([at(table, point, 3)[[4, 0, 8]].expand(2, 3, 6) for point in points]))


def test_a_probe_sees_the_slope_of_gains_that_it_cannot_move_in_half_precision() -> None:
    """A gain of 1 is followed by 1 + 2^-7 in bfloat16; both points of a probe are nearer to 1 than that."""
    (plus, minus), width = sides(1e-3), 64
    norms: tuple[Callable[[int], nn.Module], ...] = (LlamaRMSNorm, nn.LayerNorm)
    for norm, dtype in product(norms, (torch.bfloat16, torch.float16)):
        context, made = ForwardContext(dtype=dtype, perturbations=(plus, minus)), norm(width)
        trained = {name: weight_of(value.detach().to(dtype)) for name, value in made.named_parameters()}
        trained["weight"].number = 0
        x = floats(4, 500, width).to(dtype)
        slope = made.double()(x.double()).detach() * plus.direction.of(0, (width,))
        above, below = perturbed_forward(norm(width), trained, context)(torch.cat((x, x))).detach().chunk(2)
        assert above.dtype == dtype
        found = (above.double() - below.double()) / (2 * plus.distance)
        assert float((found * slope).mean()) == pytest.approx(float(slope.square().mean()), rel=0.03), (norm, dtype)


@pytest.mark.parametrize(("name", "mode"), [("gemma3_text", "lora"), ("roberta", "full")])
@torch.inference_mode()
def test_a_probe_changes_nothing(root: Path, name: str, mode: str) -> None:
    model_folder = imported(root, name, "bfloat16")
    model = LanguageModel(model_folder, release_pages=True)
    theta: Any = some_adapter(model, targets=None) if mode == "lora" else model.full()
    model.set_parameters(theta)
    tensors = {**theta.a, **theta.b} if mode == "lora" else theta.tensors
    tensors = {**tensors, **{path: part for path, w in model.weights.items() for part in w.parts.values()}}
    copies, stored = {key: value.clone() for key, value in tensors.items()}, model_folder.weights.read_bytes()
    first = model.block_losses(random_blocks())
    model.losses_at(sides(0.5, probes=2), random_blocks(), 4)
    assert all(torch.equal(value, copies[key]) for key, value in tensors.items())
    assert model_folder.weights.read_bytes() == stored
    assert model.context.perturbations == ()
    assert model.block_losses(random_blocks()) == first


def test_packed_weights_cannot_be_trained_as_a_whole(root: Path) -> None:
    for packing in PACKINGS:
        model = LanguageModel(imported(root, "llama", packing))
        with pytest.raises(BadRequest, match=r"is packed\. Import the model as bfloat16, or train an adapter"):
            model.full()


#: Walks through a model, looking after each linear map at the pages of files that are in this process's memory.
_WALK = """
import json, sys
from pathlib import Path
import torch
from pocketllm.daemon.process_memory import bytes_of
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.formats.model_folder import open_model_folder
from tests.support.models.learning import random_blocks, sides, some_adapter

@torch.inference_mode()
def growth(folder, release):
    model = LanguageModel(open_model_folder(Path(folder)), release_pages=release)
    model.set_parameters(some_adapter(model))
    most = before = bytes_of("RssFile")
    def look(*_):
        nonlocal most
        most = max(most, bytes_of("RssFile"))
    for linear in model.linears.values():
        linear.register_forward_hook(look)
    for _ in range(2):
        model.losses_at(sides(), random_blocks(2), 4)
        look()
    return most - before

small, large = sys.argv[1:]
growth(small, True), growth(small, False)  # brings in the code that a walk runs
print(json.dumps({"released": growth(large, True), "kept": growth(large, False)}))
"""


@pytest.mark.slow
def test_resident_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    layers = 64
    large = tiny_model_folder(tmp_path, "large", dtype="float32", layers=layers, hidden=128)
    size = open_model_folder(large).manifest.weights_bytes
    assert size > 30 * MB
    seen = fresh_process(_WALK, tiny_model_folder(tmp_path, "small", dtype="float32"), large)
    assert seen["kept"] > 0.9 * size
    # The layer that runs, what the kernel maps around a page that is touched, and a little code.
    assert seen["released"] < 6 * size / layers


@torch.inference_mode()
def test_logits_of_a_large_vocabulary_leave_no_pages_of_the_head_resident(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path, dtype="float32", hidden=64, vocab=270_000)
    found, resident = [], []
    for release in (True, False):
        model = LanguageModel(open_model_folder(folder), dtype=torch.float32, release_pages=release)
        before = bytes_of("RssFile") or 0
        found.append(model.next_logits(torch.tensor([[5, 6], [7, 8]]), DynamicCache()))
        resident.append((bytes_of("RssFile") or 0) - before)
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert resident[0] < 30 * MB and resident[1] > 60 * MB
