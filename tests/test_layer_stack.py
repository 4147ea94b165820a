"""Walks that begin or end at a layer, in every family that continues a text."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, Entering
from pocketllm.mezo.layers import LayerStack
from pocketllm.mezo.model import LanguageModel
from tests.learning import ALL_ROWS, imported, random_blocks, sides, some_adapter
from tests.tiny_architectures import ARCHITECTURES, MASKED

every_causal_one = pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in MASKED])
every_layer = pytest.mark.parametrize("layer", [0, 1])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "architectures"


def fresh(root: Path, name: str, *, release: bool = False, lanes: int = 1) -> LanguageModel:
    """A model through which nothing has walked yet."""
    return LanguageModel(imported(root, name, "float32"), dtype=torch.float32, release_pages=release, lanes=lanes)


def begun(model: LanguageModel, blocks: Blocks, layer: int) -> Blocks:
    return replace(blocks, entering=Entering(layer, model.entering(blocks, layer, ALL_ROWS)))


def adapter_from(model: LanguageModel, layer: int) -> Adapter:
    """An adapter of each linear map of the layers from this one on."""
    whole = some_adapter(model, targets=None)
    paths = [path for path in whole.a if (model.stack.number_of(path) or 0) >= layer]
    paths = [path for path in paths if model.stack.number_of(path) is not None]
    return replace(whole, a={path: whole.a[path] for path in paths}, b={path: whole.b[path] for path in paths})


@contextmanager
def called_layers(model: LanguageModel) -> Iterator[Counter[int | None]]:
    """How many linear maps of each layer are called meanwhile."""
    called = Counter[int | None]()

    def note(number: int | None) -> Callable[..., None]:
        return lambda *_: called.update([number])

    hooks = [linear.register_forward_hook(note(model.stack.number_of(path))) for path, linear in model.linears.items()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_counted_and_numbered(root: Path, name: str) -> None:
    model = fresh(root, name)
    stack = model.stack
    assert stack.count == 2
    numbers = {path: stack.number_of(path) for path, _ in model.network.named_modules()}
    for path, number in numbers.items():
        assert number == (None if f".{stack.path}." not in f".{path}" else int(path[len(stack.path) :].split(".")[1]))
    assert set(numbers.values()) == {None, 0, 1}
    assert stack.number_of(stack.path) is None
    assert stack.number_of(model.head_path) is None
    assert stack.number_of(f"{stack.path}_of_another.1.fc2") is None
    assert stack.number_of(f"{stack.path}.12.fc2") == 12


def test_a_model_whose_layers_are_not_one_list_has_no_stack(root: Path) -> None:
    network: Any = torch.nn.Module()
    network.config = fresh(root, "llama").network.config
    network.layers = torch.nn.ModuleList([torch.nn.Identity()])  # the config says that there are two
    stack = LayerStack(network, {}, {}, None)
    assert stack.count == 0
    assert stack.number_of("layers.0") is None
    assert stack.number_of("") is None


@every_causal_one
@every_layer
@pytest.mark.parametrize("release", [False, True])
@torch.inference_mode()
def test_losses_of_blocks_that_begin_at_a_layer_are_the_whole_walks(
    root: Path, name: str, layer: int, release: bool
) -> None:
    model, blocks = fresh(root, name, release=release), random_blocks()
    adapter = adapter_from(model, layer)
    whole_at_base = model.block_losses(blocks)
    entered = begun(model, blocks, layer)
    assert model.block_losses(entered) == whole_at_base
    assert torch.equal(model.hidden(entered), model.hidden(blocks))
    model.use(adapter)
    whole, points = model.block_losses(blocks), sides(probes=2)
    at_points = model.losses_at(points, blocks, ALL_ROWS)
    # What enters the lowest adapted layer does not depend on the adapter.
    assert torch.equal(model.entering(blocks, layer, ALL_ROWS), entered.entering.states)  # type: ignore[union-attr]
    assert model.block_losses(entered) == whole
    assert model.losses_at(points, entered, ALL_ROWS) == at_points
    assert whole != whole_at_base
    assert len(set(at_points)) > 1
    # And the next walk is a whole one again.
    assert model.block_losses(blocks) == whole


@every_causal_one
@every_layer
@torch.inference_mode()
def test_the_very_first_walk_may_begin_at_a_layer(root: Path, name: str, layer: int) -> None:
    """As that of a run that goes on with states from a file, and in lanes that have seen nothing before."""
    blocks = random_blocks()
    known = fresh(root, name)
    entered, expected = begun(known, blocks, layer), known.block_losses(blocks)
    assert fresh(root, name).block_losses(entered) == expected
    assert torch.equal(fresh(root, name).entering(blocks, layer), entered.entering.states)  # type: ignore[union-attr]
    assert fresh(root, name, lanes=2).block_losses(entered) == pytest.approx(expected, abs=2e-6)


@every_causal_one
@every_layer
@torch.inference_mode()
def test_some_of_the_blocks_take_their_states_along(root: Path, name: str, layer: int) -> None:
    model, blocks = fresh(root, name), random_blocks(5)
    entered, whole = begun(model, blocks, layer), model.block_losses(blocks)
    chosen = torch.tensor([3, 0])
    assert model.block_losses(entered[chosen]) == pytest.approx([whole[3], whole[0]], abs=2e-6)
    assert model.block_losses(entered, 2) == pytest.approx(whole, abs=2e-6)
    assert model.block_losses(entered.repeat(2)) == pytest.approx([*whole, *whole], abs=2e-6)
    for part in entered.split(2):
        assert part.entering is not None
        assert len(part.entering.states) == len(part)


@pytest.mark.parametrize("name", ["llama", "opt"])
@torch.inference_mode()
def test_layers_outside_of_a_walk_are_not_computed(root: Path, name: str) -> None:
    model, blocks = fresh(root, name), random_blocks()
    entered = begun(model, blocks, 1)
    with called_layers(model) as called:
        model.block_losses(entered)
    assert called[0] == 0 < called[1]
    with called_layers(model) as called:
        model.entering(blocks, 1)
    assert called[1] == 0 < called[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.inference_mode()
def test_states_of_another_dtype_are_taken_in_as_the_layers_compute(root: Path, dtype: torch.dtype) -> None:
    model, blocks = fresh(root, "llama"), random_blocks()
    states = model.entering(blocks, 1).to(dtype)
    entered = replace(blocks, entering=Entering(1, states))
    assert model.hidden(entered).dtype == torch.float32
    assert model.block_losses(entered) == pytest.approx(model.block_losses(blocks), abs=0.1)


class Stumbled(Exception):
    """What a test lets happen in a walk."""


@every_causal_one
@pytest.mark.parametrize("lanes", [1, 2])
@torch.inference_mode()
def test_after_an_error_in_a_walk_the_stack_is_whole_again(root: Path, name: str, lanes: int) -> None:
    model, blocks = fresh(root, name, release=True, lanes=lanes), random_blocks()
    begun_at_1, points = begun(model, blocks, 1), sides()
    before = model.block_losses(blocks), model.block_losses(begun_at_1)
    last = max(model.linears, key=lambda path: model.stack.number_of(path) or 0)
    first = min(model.linears, key=lambda path: (model.stack.number_of(path) is None, model.stack.number_of(path)))

    def stumble(*_: object) -> None:
        raise Stumbled

    walks: list[tuple[str, Callable[[], object]]] = [
        (last, lambda: model.block_losses(begun_at_1)),
        (last, lambda: model.losses_at(points, begun_at_1, ALL_ROWS)),
        (last, lambda: model.block_losses(blocks)),
        (first, lambda: model.entering(blocks, 1)),
    ]
    for path, walk in walks:
        hook = model.linears[path].register_forward_hook(stumble)
        with pytest.raises(Stumbled):
            walk()
        hook.remove()
        assert (model.block_losses(blocks), model.block_losses(begun_at_1)) == before


@torch.inference_mode()
def test_states_that_do_not_fit_are_not_left_behind(root: Path) -> None:
    model, blocks = fresh(root, "llama"), random_blocks()
    whole = model.block_losses(blocks)
    with pytest.raises(RuntimeError):
        model.block_losses(replace(blocks, entering=Entering(1, torch.zeros(4, 20, 63))))
    assert model.block_losses(blocks) == whole
