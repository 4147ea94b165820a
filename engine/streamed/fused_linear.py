"""Products of one token with several weights at once, where these lie behind each other in the weights file.

Starting a small product takes longer than a part of it: all of SmolLM2-135M's 210 maps take 10.4 ms a token on two
cores, the same weights as 120 matrices 9.0. Which maps are asked for the same token, one after the other (queries, keys
and values; the two ways into a gated block), is found out by watching, so nothing here knows an architecture.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pocketllm.engine.streamed.weights import Weight, behind_each_other


@dataclass
class _Run:
    """Weights that one token is multiplied with, one after the other."""

    weights: list[Weight]
    floats: list[torch.Tensor]
    joint: torch.Tensor | None = None  #: all of them as one; None while there is one


class FusedLinear:
    """The products of one network's maps with single tokens. For one thread at a time."""

    def __init__(self) -> None:
        self._runs: dict[int, _Run] = {}  #: by the id of the first weight's floats, which the run keeps alive
        self._last: tuple[torch.Tensor, _Run] | None = None  #: what the map before took in, and the run it belongs to
        self._left: list[tuple[torch.Tensor, torch.Tensor]] = []  #: of the last product: floats, and what they made

    def product(self, x: torch.Tensor, weight: Weight, floats: torch.Tensor) -> torch.Tensor:
        """(1, ..., in) times the (out, in) floats of this weight -> (1, ..., out).

        x must not be written to between the maps that take it in.
        """
        same = self._last is not None and self._last[0] is x
        if same and self._left and self._left[0][0] is floats:
            return self._left.pop(0)[1]
        run = self._runs.get(id(floats))
        if run is None:
            run = self._noted(weight, floats, self._last[1] if same and self._last is not None else None)
        self._last = (x, run)
        self._left = []
        if run.joint is None or run.floats[0] is not floats:
            return nn.functional.linear(x, floats)
        made = nn.functional.linear(x, run.joint)
        start = floats.shape[0]
        for more in run.floats[1:]:
            self._left.append((more, made[..., start : start + more.shape[0]]))
            start += more.shape[0]
        return made[..., : floats.shape[0]]

    def _noted(self, weight: Weight, floats: torch.Tensor, before: _Run | None) -> _Run:
        """The run of a map that was called alone: the one of the map before, where that took in the same."""
        if before is not None and (joint := behind_each_other([*before.weights, weight])) is not None:
            before.weights.append(weight)
            before.floats.append(floats)
            before.joint = joint
            return before
        run = self._runs[id(floats)] = _Run([weight], [floats])
        return run
