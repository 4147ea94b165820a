"""The inner maps of a feed-forward block, and how the error at its end is led back to them.

A block writes y = D h into the stream, with h = f(G x) (Llama's forerunners, OPT) or h = f(G x) * (U x) (gated:
arXiv 2002.05202). From the error e at y follows, number by number,

    at h: D^T e,    at G x: D^T e * f'(G x) [* U x],    at U x: D^T e * f(G x).

One product with a weight that the pass has used anyhow, and f tried a little to both sides: no backward pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pocketllm.mezo.network import Network

#: A module's path, what it took in and what it put out, all of them alive.
Call = tuple[str, torch.Tensor, torch.Tensor]

#: How far to both sides f is tried, in fp32: such a part of the distance to zero, where some have a kink; at least so
#: far, or rounding would count.
_TRIED, _LEAST_TRIED = 1e-2, 1e-6
#: Of the products that make h, in bfloat16.
_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Paths of a block's modules."""

    function: str  #: f
    through: str  #: G
    beside: str | None  #: U, where the block is gated

    @property
    def maps(self) -> tuple[str, ...]:
        """The linear maps."""
        return (self.through,) if self.beside is None else (self.through, self.beside)

    def errors(
        self, at_h: torch.Tensor, made: dict[str, torch.Tensor], function: nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Path of each map and the error at its output, from the one at h: (n, inner) fp32 each.

        made: what the maps have put out, (n, inner), by path.
        """
        x = made[self.through].float()
        tried = (x.abs() * _TRIED).clamp_(min=_LEAST_TRIED)
        above, below = function(x + tried), function(x - tried)
        at_value = at_h * ((above - below) / (2 * tried))
        if self.beside is None:
            yield self.through, at_value
            return
        yield self.through, at_value * made[self.beside].float()
        yield self.beside, at_h * ((above + below) / 2)


def find_feed_forward(network: Network, calls: Sequence[Call], writer: str) -> FeedForward | None:
    """The block that ends in this map, by a walk's calls; None where what the map takes in is made in another way."""
    h = next(taken for path, taken, _ in calls if path == writer)
    made = {path: output for path, _, output in calls if path in network.linears and output.shape == h.shape}
    for function, taken, output in calls:
        through = next((path for path, one in made.items() if same(one, taken)), None)
        if through is None or function in network.linears or same(taken, output) or output.shape != h.shape:
            continue
        if next(network.module.get_submodule(function).parameters(), None) is not None:
            continue  # it may not work in fp32
        if same(output, h):
            return FeedForward(function=function, through=through, beside=None)
        for beside, other in made.items():
            if beside != through and torch.allclose(output.float() * other.float(), h.float(), rtol=_TOLERANCE):
                return FeedForward(function=function, through=through, beside=beside)
    return None


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether these are the same numbers in memory; both are alive."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
