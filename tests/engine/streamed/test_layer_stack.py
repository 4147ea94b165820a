"""A pass that takes one layer at a time, beside the model's own code, in every family."""

from pathlib import Path

import pytest
import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.weights import Weight
from tests.support.models.learning import ALL_ROWS, imported, random_blocks, sides, some_adapter
from tests.support.models.tiny_architectures import ARCHITECTURES, MASKED


def fresh(root: Path, name: str) -> LanguageModel:
    """A model through which nothing has passed yet."""
    return LanguageModel(imported(root, name, "float32"), dtype=torch.float32, release_pages=True)


def blocks_for(name: str) -> Batch:
    """For a model that fills in masks, with padding."""
    return random_blocks(lengths=[20, 13, 20, 9] if name in MASKED else None)


def layer_by_layer(model: LanguageModel, blocks: Batch) -> torch.Tensor:
    """What the output head sees at the end of such a pass."""
    hidden, calls = model.layer_calls(blocks)
    for number, call in enumerate(calls):
        hidden = model.stack.run(number, hidden, call)
    return model.behind_layers(blocks, hidden)


def test_every_layer_is_numbered_and_has_weights_of_its_own(root: Path) -> None:
    for name in ARCHITECTURES:
        model = fresh(root, name)
        stack = model.stack
        assert stack.count == 2
        numbers = {path: stack.number_of(path) for path, _ in model.network.named_modules()}
        for path, number in numbers.items():
            inside = f".{stack.path}." in f".{path}"
            assert number == (int(path[len(stack.path) :].split(".")[1]) if inside else None)
        of_layers = list(numbers.values())
        assert of_layers.count(0) == of_layers.count(1) > 0 and set(of_layers) == {None, 0, 1}
        assert stack.number_of(stack.path) is None
        assert stack.number_of(f"{stack.path}_of_another.1.fc2") is None
        assert stack.number_of(f"{stack.path}.12.fc2") == 12
        first, second = ({id(weight) for weight in stack.weights[number]} for number in (0, 1))
        assert len(first) == len(second) == len(stack.weights[0]) >= 6
        assert not first & second


@torch.inference_mode()
def test_layer_by_layer_it_is_the_models_own_pass(root: Path) -> None:
    """Also when it is the very first one; and the next is the model's own again."""
    for name in ARCHITECTURES:
        model, blocks = fresh(root, name), blocks_for(name)
        adapter, other = some_adapter(model, targets=None), fresh(root, name)
        for one in (model, other):
            one.set_parameters(adapter)
        found = layer_by_layer(model, blocks)
        assert torch.equal(found, other.hidden(blocks)) and torch.equal(found, model.hidden(blocks)), name


class Stumbled(Exception):
    """What a test lets happen in a pass."""


@pytest.mark.parametrize("name", ["llama", "roberta"])
@torch.inference_mode()
def test_after_an_error_in_a_pass_the_stack_is_whole_again(root: Path, name: str) -> None:
    """And no perturbation stays behind."""
    model, blocks = fresh(root, name), blocks_for(name)
    model.set_parameters(some_adapter(model, targets=None))
    before = model.block_losses(blocks)

    def stumble(*_: object) -> None:
        raise Stumbled

    # Of a layer, and of what comes behind the last.
    for module in (model.linears[max(model.linears)], model.head):
        hook = module.register_forward_pre_hook(stumble)
        with pytest.raises(Stumbled):
            layer_by_layer(model, blocks)
        with pytest.raises(Stumbled):
            model.losses_at(sides(), blocks, ALL_ROWS)
        hook.remove()
        assert model.block_losses(blocks) == before
        assert torch.equal(layer_by_layer(model, blocks), model.hidden(blocks))


@pytest.mark.parametrize("name", ["llama", "roberta"])
@torch.inference_mode()
def test_a_layers_pages_are_read_before_it_runs_and_released_behind_it(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the following layer are read meanwhile; the first follows the last, in the next pass."""
    model, blocks, log = fresh(root, name), blocks_for(name), list[tuple[str, int]]()
    number_of = {id(weight): number for number in (0, 1) for weight in model.stack.weights[number]}
    for asked in ("prefetch", "release"):

        def note(weight: Weight, *_: int, asked: str = asked) -> None:
            if id(weight) in number_of:
                log.append((asked, number_of[id(weight)]))

        monkeypatch.setattr(Weight, asked, note)
    model.block_losses(blocks)
    expected = [("prefetch", 1), ("release", 0), ("prefetch", 0), ("release", 1)]
    assert list(dict.fromkeys(log)) == expected
