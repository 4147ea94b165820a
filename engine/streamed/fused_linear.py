"""The product of a few tokens with several weights at once, where these are adjacent in the weights file.

Starting a product takes a while: SmolLM2-135M's 210 linear maps take 10.4 ms a token on two cores, the same weights as
120 matrices 9.0. Which maps take the same input (queries, keys and values; gate and up) is observed while the model
runs, so nothing here is specific to an architecture.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pocketllm.engine.streamed.weights import Weight, adjacent


@dataclass
class _Run:
    """Weights that are applied to the same input, one after the other."""

    weights: list[Weight]
    floats: list[torch.Tensor]
    joint: torch.Tensor | None = None  #: all of them as one matrix; None while there is only one


class FusedLinear:
    """The products of one network's linear maps with a few tokens. Not thread-safe."""

    def __init__(self) -> None:
        self._runs: dict[int, _Run] = {}  #: id of the first weight's floats (which the run keeps alive) -> the run
        self._last: tuple[torch.Tensor, _Run] | None = None  #: the previous map's input and run
        self._left: list[tuple[torch.Tensor, torch.Tensor]] = []  #: the outputs computed ahead, by floats

    def product(self, x: torch.Tensor, weight: Weight, floats: torch.Tensor) -> torch.Tensor:
        """(..., in) times the (out, in) floats of this weight -> (..., out).

        x must not change between the maps that take it.
        """
        same = self._last is not None and self._last[0] is x
        if same and self._left and self._left[0][0] is floats:
            return self._left.pop(0)[1]
        run = self._runs.get(id(floats))
        if run is None:
            run = self._observed(weight, floats, self._last[1] if same and self._last is not None else None)
        self._last = (x, run)
        self._left = []
        if run.joint is None or run.floats[0] is not floats:
            return nn.functional.linear(x, floats)
        outputs = nn.functional.linear(x, run.joint)
        start = floats.shape[0]
        for more in run.floats[1:]:
            self._left.append((more, outputs[..., start : start + more.shape[0]]))
            start += more.shape[0]
        return outputs[..., : floats.shape[0]]

    def _observed(self, weight: Weight, floats: torch.Tensor, before: _Run | None) -> _Run:
        """Add a new map to the previous map's run if both had the same input, else begin a run with it."""
        if before is not None and (joint := adjacent([*before.weights, weight])) is not None:
            before.weights.append(weight)
            before.floats.append(floats)
            before.joint = joint
            return before
        run = self._runs[id(floats)] = _Run([weight], [floats])
        return run
