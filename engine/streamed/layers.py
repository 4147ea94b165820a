"""A model's stack of layers, run by the model's own code or one at a time, and the residency of their pages."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.streamed.context import ForwardContext, Scratch
from pocketllm.engine.streamed.decoding import decoding_forward
from pocketllm.engine.streamed.weights import Weight

with lean_transformers():
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerCall:
    """A layer's arguments besides the hidden states: masks, rotary embeddings."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]


class LayerStack:
    """The layers of one network. By default the model's own code calls them one after the other.

    A pass that runs one layer at a time (pocketllm.backprop) runs the model's code twice with all layers skipped: once
    to get the first layer's input and every layer's arguments (`calls`), and once for what follows the last layer
    (`skip_all`).
    """

    def __init__(
        self, network: PreTrainedModel, names: Mapping[str, str], weights: Mapping[str, Weight], context: ForwardContext
    ) -> None:
        """names: path of each parameter -> its name in `weights`.

        `count` is 0 for a model whose layers are not one nn.ModuleList.
        """
        count = network.config.get_text_config().num_hidden_layers
        found = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        path, layers = found[0] if found else ("", nn.ModuleList())
        self.path: str = path
        self.layers, self.count = layers, len(layers)
        self._forwards = [layer.forward for layer in layers]
        self._skip: Callable[[int, torch.Tensor, LayerCall], torch.Tensor] | None = None
        self._in_tuples = False
        self._context = context
        self._scratches: list[Scratch] = []  #: of the layer that is held
        self.weights = [
            [weights[name] for place, name in names.items() if place.startswith(f"{self.path}.{number}.")]
            for number in range(self.count)
        ]
        for number, layer in enumerate(layers):
            layer.forward = decoding_forward(layer, context)
            self._wrap(number, layer)

    def number_of(self, path: str) -> int | None:
        """The index of the layer that contains the module with this path; None outside the stack."""
        if self.count == 0 or not path.startswith(f"{self.path}."):
            return None
        return int(path[len(self.path) + 1 :].partition(".")[0])

    def calls(self, forward: Callable[[], object]) -> tuple[torch.Tensor, list[LayerCall]]:
        """The first layer's input and every layer's other arguments, when `forward` runs the network with no layer."""
        inputs: list[torch.Tensor] = []
        calls: list[LayerCall] = []

        def skip(_number: int, hidden: torch.Tensor, call: LayerCall) -> torch.Tensor:
            inputs.append(hidden)
            calls.append(call)
            return hidden

        self._run_skipping(skip, forward)
        return inputs[0], calls

    def skip_all(self, hidden: torch.Tensor, forward: Callable[[], object]) -> None:
        """Let `forward` run the network with no layer and `hidden` as the last one's output."""
        self._run_skipping(lambda number, given, _: hidden if number == self.count - 1 else given, forward)

    def run(self, number: int, hidden: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """One layer's output for these hidden states, both (blocks, tokens, width)."""
        output = self._forwards[number](hidden, *call.arguments, **call.options)
        self._in_tuples = isinstance(output, tuple)
        hidden = output[0] if self._in_tuples else output
        return hidden

    @contextmanager
    def loaded(self, number: int, following: int) -> Iterator[None]:
        """Meanwhile prefetch the following layer's pages, and then release this one's, if the pass releases pages."""
        if self._context.release and 0 <= following < self.count:
            for weight in self.weights[following]:
                weight.prefetch()
        try:
            yield
        finally:
            for weight in self.weights[number] if self._context.release else ():
                weight.release()

    @contextmanager
    def held(self, number: int, following: int, limit: int) -> Iterator[None]:
        """As `loaded`; meanwhile each weight has one dense copy for all products, if all are `limit` bytes at most."""
        weights, dtype = self.weights[number], self._context.dtype
        copied = [one for one in weights if len(one.shape) == 2 and one.as_stored(self._context) is None]
        if dtype.itemsize * sum(prod(weight.shape) for weight in weights) > limit:
            copied = []
        self._scratches += [Scratch() for _ in copied[len(self._scratches) :]]
        with self.loaded(number, following):
            try:
                for weight, scratch in zip(copied, self._scratches, strict=False):
                    weight.held = weight.dense(dtype, scratch)
                yield
            finally:
                for weight in copied:
                    weight.held = None

    def _run_skipping(
        self, skip: Callable[[int, torch.Tensor, LayerCall], torch.Tensor], forward: Callable[[], object]
    ) -> None:
        self._skip = skip
        try:
            forward()
        finally:
            self._skip = None

    def _wrap(self, number: int, layer: nn.Module) -> None:
        inner = layer.forward

        def forward(hidden: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if self._skip is not None:
                skipped = self._skip(number, hidden, LayerCall(arguments, options))
                return (skipped,) if self._in_tuples else skipped
            with self.loaded(number, (number + 1) % self.count):
                output = inner(hidden, *arguments, **options)
            self._in_tuples = isinstance(output, tuple)
            return output

        layer.forward = forward
