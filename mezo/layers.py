"""A model's stack of layers: where a walk enters it and leaves it, and which pages of the weights are in memory.

What enters the lowest adapted layer does not depend on the adapter. Whoever keeps it (mezo/trunk.py) walks through the
layers from there on alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from torch import nn

from pocketllm.mezo.lean import lean_transformers
from pocketllm.mezo.weights import Weight

with lean_transformers():
    from transformers import PreTrainedModel


class LayerPages:
    """Reads a layer's pages of the weights file ahead, and gives them back once nobody is in the layer any more."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = Counter[int]()

    def reset(self) -> None:
        """Nobody is in any layer: after a walk that an error ended."""
        self._inside.clear()

    def enter(self, layer: int, following: Sequence[Weight]) -> None:
        """Somebody enters a layer, and will need the weights of the following one."""
        with self._lock:
            self._inside[layer] += 1
        for weight in following:
            weight.prefetch()

    def leave(self, layer: int, weights: Sequence[Weight]) -> None:
        """Somebody leaves a layer."""
        with self._lock:
            self._inside[layer] -= 1
            empty = self._inside[layer] <= 0
        if empty:
            for weight in weights:
                weight.release()


class LayerStack:
    """The layers of one network, of which a walk may pass through the upper or the lower ones alone.

    The model's own code calls all of them in any case, with masks and positions made as always. A layer outside of
    the walk hands on what it is given.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        names: Mapping[str, str],
        weights: Mapping[str, Weight],
        pages: LayerPages | None,
    ) -> None:
        """names: path of each parameter -> its name among the weights. pages: None keeps in memory what was touched.

        A model whose layers are not one list has none of all this: `count` is 0.
        """
        count = network.config.get_text_config().num_hidden_layers
        found = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        path, layers = found[0] if found else ("", nn.ModuleList())
        self.path: str = path
        self.count = len(layers)
        self._first, self._stop = 0, self.count
        self._entering: torch.Tensor | None = None
        self._leaving: torch.Tensor | None = None
        self._in_tuples = False
        self._pages = pages
        self._weights = [
            [weights[name] for place, name in names.items() if place.startswith(f"{self.path}.{number}.")]
            for number in range(self.count)
        ]
        for number, layer in enumerate(layers):
            self._guard(number, layer)

    def number_of(self, path: str) -> int | None:
        """The number of the layer that the module with this path is in; None outside the stack."""
        if self.count == 0 or not path.startswith(f"{self.path}."):
            return None
        return int(path[len(self.path) + 1 :].partition(".")[0])

    def enter_at(self, first: int, states: torch.Tensor) -> None:
        """Let the next walk begin with layer `first`, which takes in these states, (blocks, tokens, width)."""
        self._first, self._entering = first, states

    def leave_at(self, stop: int) -> None:
        """Let the next walk end in front of layer `stop`; `take_leaving` then has what would have entered it."""
        self._stop, self._leaving = stop, None

    def take_leaving(self) -> torch.Tensor:
        """(blocks, tokens, width): what would have entered the layer that the walk ended in front of."""
        leaving, self._leaving = self._leaving, None
        assert leaving is not None, "leave_at() comes before the walk"
        return leaving

    def reset(self) -> None:
        """Let walks pass through all layers again."""
        self._first, self._stop, self._entering = 0, self.count, None

    def _guard(self, number: int, layer: nn.Module) -> None:
        inner = layer.forward

        def forward(hidden: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if number == self._stop:
                self._leaving = hidden
            if not self._first <= number < self._stop:
                return (hidden,) if self._in_tuples else hidden
            if number == self._first and self._entering is not None:
                hidden, self._entering = self._entering, None
            if self._pages is not None:
                self._pages.enter(number, self._weights[(number + 1) % self.count])
            try:
                output = inner(hidden, *arguments, **options)
            finally:
                if self._pages is not None:
                    self._pages.leave(number, self._weights[number])
            self._in_tuples = isinstance(output, tuple)
            return output

        layer.forward = forward
