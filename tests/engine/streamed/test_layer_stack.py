"""A pass that takes one layer at a time, beside the model's own code, in every family."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.streamed.layers import LayerPages, LayerStack
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.modules import ForwardContext
from pocketllm.engine.streamed.network import Network
from tests.support.learning import imported, random_blocks, some_adapter
from tests.support.tiny_architectures import ARCHITECTURES, MASKED

every_family = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "architectures"


def fresh(root: Path, name: str, *, release: bool = False, replicas: int = 1) -> LanguageModel:
    """A model through which nothing has passed yet."""
    return LanguageModel(imported(root, name, "float32"), dtype=torch.float32, release_pages=release, replicas=replicas)


def blocks_for(name: str) -> Batch:
    """For a model that fills in masks, with padding."""
    return random_blocks(lengths=[20, 13, 20, 9] if name in MASKED else None)


def layer_by_layer(replica: Network, blocks: Batch) -> torch.Tensor:
    """What the output head sees at the end of such a pass."""
    hidden, calls = replica.layer_calls(blocks)
    for number, call in enumerate(calls):
        hidden = replica.stack.run(number, hidden, call)
    return replica.behind_layers(blocks, hidden)


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


@every_family
def test_every_layer_is_counted_and_numbered(root: Path, name: str) -> None:
    model = fresh(root, name)
    stack = model.stack
    assert stack.count == 2
    numbers = {path: stack.number_of(path) for path, _ in model.network.named_modules()}
    for path, number in numbers.items():
        assert number == (None if f".{stack.path}." not in f".{path}" else int(path[len(stack.path) :].split(".")[1]))
    assert set(numbers.values()) == {None, 0, 1}
    assert stack.number_of(stack.path) is None
    assert stack.number_of(f"{stack.path}_of_another.1.fc2") is None
    assert stack.number_of(f"{stack.path}.12.fc2") == 12


def test_a_model_whose_layers_are_not_one_list_has_no_stack(root: Path) -> None:
    network: Any = torch.nn.Module()
    network.config = fresh(root, "llama").network.config
    network.layers = torch.nn.ModuleList([torch.nn.Identity()])  # the config says that there are two
    stack = LayerStack(network, {}, {}, None, ForwardContext(dtype=torch.float32))
    assert stack.count == 0
    assert stack.number_of("layers.0") is None
    assert stack.number_of("") is None


@every_family
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("first", [False, True], ids=["later", "as the very first pass"])
@torch.inference_mode()
def test_layer_by_layer_it_is_the_models_own_pass(
    root: Path, name: str, replicas: int, release: bool, first: bool
) -> None:
    blocks, known = blocks_for(name), fresh(root, name)
    adapter = some_adapter(known, targets=None)
    known.set_parameters(adapter)
    expected = known.hidden(blocks)
    model = fresh(root, name, release=release, replicas=replicas)
    model.set_parameters(adapter)
    if not first:
        model.block_losses(blocks)
    found = model.map_replicas(layer_by_layer, [blocks] * replicas)
    assert all(torch.equal(hidden, expected) for hidden in found)
    # And the next pass is the model's own again.
    assert torch.equal(model.hidden(blocks), expected)


@every_family
@torch.inference_mode()
def test_calls_and_leaving_compute_no_layer(root: Path, name: str) -> None:
    model, blocks = fresh(root, name), blocks_for(name)
    (replica,) = model.map_replicas(lambda replica, _: replica, [None])
    with called_layers(model) as called:
        hidden, calls = replica.layer_calls(blocks)
        replica.behind_layers(blocks, hidden)
    assert called[0] == called[1] == 0
    assert len(calls) == model.stack.count
    with called_layers(model) as called:
        model.stack.run(1, hidden, calls[1])
    assert called[0] == 0 < called[1]


@torch.inference_mode()
def test_a_call_holds_the_mask_and_the_rotary_embedding_of_its_layer(root: Path) -> None:
    """Gemma's first layer sees a window and its second all, with other rotary bases."""
    model, blocks = fresh(root, "gemma3_text"), random_blocks()
    (replica,) = model.map_replicas(lambda replica, _: replica, [None])
    _, (sliding, full) = replica.layer_calls(blocks)
    told = [{**dict(enumerate(call.arguments)), **call.options} for call in (sliding, full)]
    assert told[0].keys() == told[1].keys()
    tensors = [
        [x for value in some.values() for x in (value if isinstance(value, tuple) else (value,))] for some in told
    ]
    differ = [
        isinstance(one, torch.Tensor) != isinstance(two, torch.Tensor)
        or (isinstance(one, torch.Tensor) and not torch.equal(one, two))
        for one, two in zip(*tensors, strict=True)
    ]
    assert any(differ)


class Stumbled(Exception):
    """What a test lets happen in a pass."""


@every_family
@pytest.mark.parametrize("replicas", [1, 2])
@torch.inference_mode()
def test_after_an_error_in_a_pass_the_stack_is_whole_again(root: Path, name: str, replicas: int) -> None:
    model, blocks = fresh(root, name, release=True, replicas=replicas), blocks_for(name)
    before = model.block_losses(blocks)

    def stumble(*_: object) -> None:
        raise Stumbled

    # Of a layer, and of what comes behind the last.
    for module in (model.linears[max(model.linears)], model.head):
        hook = module.register_forward_pre_hook(stumble)
        with pytest.raises(Stumbled):
            model.map_replicas(layer_by_layer, [blocks])
        with pytest.raises(Stumbled):
            model.block_losses(blocks)
        hook.remove()
        assert model.block_losses(blocks) == before
        assert torch.equal(model.map_replicas(layer_by_layer, [blocks])[0], model.hidden(blocks))


class Page:
    """A weight that notes what is asked of its pages."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def prefetch(self) -> None:
        self._log.append(f"read {self._name}")

    def release(self) -> None:
        self._log.append(f"release {self._name}")


def test_pages_stay_until_the_last_has_left_a_layer() -> None:
    log: list[str] = []
    one, two = (Page(name, log) for name in ("one", "two"))
    pages: Any = LayerPages()
    pages.enter(0, [two])
    pages.enter(0, [two])
    pages.leave(0, [one])
    assert log == ["read two", "read two"]
    pages.leave(0, [one])
    assert log[2:] == ["release one"]
    pages.enter(0, [])
    pages.reset()  # an error ended that pass
    pages.enter(0, [])
    pages.leave(0, [one])
    assert log[3:] == ["release one"]


@torch.inference_mode()
def test_the_weights_of_a_layer_are_all_of_its_own(root: Path) -> None:
    for name in ARCHITECTURES:
        model = fresh(root, name, release=True)
        counts = [len(model.stack.weights_of(number)) for number in range(model.stack.count)]
        own = Counter(model.stack.number_of(path) for path, _ in model.network.named_modules())
        assert counts[0] == counts[1] >= 6
        assert own[0] == own[1]
        names = {id(weight) for number in range(model.stack.count) for weight in model.stack.weights_of(number)}
        assert len(names) == sum(counts)
