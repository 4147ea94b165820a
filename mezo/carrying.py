"""How the layers above carry the stream to its end, on average: the mean Jacobian, found by forward passes alone.

A layer adds to the stream, but what it adds depends on what the stream holds. With J the Jacobian of the stream's end
by what enters a layer, the error there is J^T times the error at the end. J is another one for each token; but its
mean over tokens is a property of the model, not of the text, and says more than the identity that it stands in for:
on SmolLM2 the cosine with the true error goes from 0.66 to 0.82 two layers from the end and from 0.40 to 0.56 six
layers from it, on texts of other writers than the one it was measured on as well.

Measured it is by moving what enters a layer by random numbers u, independent ones at each token, of deviation s. With
d what that moves at the end, E[d u^T] = s^2 E[J]: what the u of other tokens contribute has mean zero, and so has
what is quadratic in u. Two halves of the tokens measure it twice, and what they do not agree on is taken for noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from pocketllm.mezo.batches import Blocks, Entering
from pocketllm.mezo.budget import GUIDED_SHARE
from pocketllm.mezo.guide import inputs_of
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.network import Network
from pocketllm.mezo.noise import Direction
from pocketllm.mezo.stream import Stream
from pocketllm.mezo.tensor_file import write_tensors
from pocketllm.mezo.weights import open_weights

NAME = "carrying.safetensors"
#: Layers that a guide is tried on at a time.
LAYERS_AT_ONCE = 2
#: Memory for the sums of several layers.
MOST_BYTES = 64 * 2**20
#: How far the stream is moved, over its own root mean square.
_DEVIATION = 0.1


def lowest_guided(layers: int) -> int:
    """The lowest of so many layers that a guide is tried on: about two fifths of them, an even number."""
    return layers - max(1, round(layers * GUIDED_SHARE / LAYERS_AT_ONCE)) * LAYERS_AT_ONCE


def measure_carrying(
    model: LanguageModel,
    stream: Stream,
    blocks: Blocks,
    *,
    seed: int = 0,
    blocks_at_once: int = 8,
    on_part: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[int, torch.Tensor]:
    """Layer -> (width, width) mean Jacobian of the stream's end by what enters the layer, for those that are guided.

    At the base's weights. The lowest guided layer is not among them, since its maps write behind what enters it.
    Empty where the stream is so wide that a matrix of its width squared does not fit. Deterministic in its arguments.
    on_part: called with how many parts are done, and how many there are.
    """
    model.use(None)
    layers = range(max(0, lowest_guided(model.stack.count)) + 1, model.stack.count)
    at_once = MOST_BYTES // (2 * 4 * stream.width**2)
    groups = [layers[first : first + at_once] for first in range(0, len(layers), at_once)] if at_once else []
    parts = list(blocks.split(blocks_at_once))
    found: dict[int, torch.Tensor] = {}
    done = 0
    for group in groups:
        measured = _Sums(stream.width, group)
        for number, part in enumerate(parts):
            measured.add(model, stream, part, number, seed)
            done += 1
            on_part(done, len(groups) * len(parts))
        found |= measured.means()
    return found


class _Sums:
    """Sums over tokens for some layers, each in two halves."""

    def __init__(self, width: int, layers: range) -> None:
        self._layers = layers
        self._sums = {(layer, half): torch.zeros(width, width) for layer in layers for half in range(2)}
        self._tokens = [0, 0]

    def add(self, model: LanguageModel, stream: Stream, part: Blocks, number: int, seed: int) -> None:
        """Take a part of the blocks into account."""
        half = number % 2
        entering = model.entering(part, self._layers[0], len(part))
        end = _end(model, stream, part, self._layers[0], entering)
        for layer in self._layers:
            if layer > self._layers[0]:
                entering = _onwards(model, part, layer - 1, entering)
            noise = Direction(seed=seed, step=number + 1, kind="gaussian").of(layer, entering.shape)
            # The first word of a row is where attention goes when it has nowhere to go: its stream is a giant.
            deviation = _DEVIATION * float(entering[:, 1:].float().square().mean().sqrt())
            moved = (entering.float() + deviation * noise).to(entering.dtype)
            difference = (_end(model, stream, part, layer, moved) - end)[:, 1:].flatten(0, 1)
            u = (moved.float() - entering.float())[:, 1:].flatten(0, 1)
            self._sums[layer, half] += (difference.t() @ u) / deviation**2
        self._tokens[half] += part.inputs[:, 1:].numel()

    def means(self) -> dict[int, torch.Tensor]:
        """What was found of each layer."""
        if not all(self._tokens):
            return {}
        return {
            layer: _agreed(*(self._sums[layer, half] / self._tokens[half] for half in range(2)))
            for layer in self._layers
        }


def save_carrying(folder: Path, carrying: Mapping[int, torch.Tensor]) -> None:
    """Write it beside the model's weights, in bfloat16, whole or not at all."""
    write_tensors(folder / NAME, {str(layer): jacobian.to(torch.bfloat16) for layer, jacobian in carrying.items()})


def load_carrying(folder: Path) -> dict[int, torch.Tensor]:
    """What was measured of a model, mapped into memory; empty where nothing was."""
    if not (folder / NAME).is_file():
        return {}
    return {int(name): weight.floats for name, weight in open_weights(folder / NAME).items()}


def _agreed(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The mean of two measurements, drawn towards the identity as far as they do not agree on the difference to it."""
    identity = torch.eye(len(one))
    mean = (one + other) / 2 - identity
    size = float(mean.square().sum())
    agreed = float(((one - identity) * (other - identity)).sum())
    return identity + mean * (min(1.0, max(0.0, agreed / size)) if size else 0.0)


def _onwards(model: LanguageModel, blocks: Blocks, layer: int, entering: torch.Tensor) -> torch.Tensor:
    """What leaves a layer that this enters."""

    def work(network: Network, part: Blocks) -> torch.Tensor:
        return network.entering(part, layer + 1)

    begun = _begun(blocks, layer, entering)
    return torch.cat(model.in_lanes(work, begun, len(blocks)))


def _end(model: LanguageModel, stream: Stream, blocks: Blocks, layer: int, entering: torch.Tensor) -> torch.Tensor:
    """(blocks, tokens, width) fp32: the stream in front of the last norm."""

    def work(network: Network, part: Blocks) -> torch.Tensor:
        with inputs_of(network, [stream.norm]) as taken:
            network.hidden(part)
        return taken[stream.norm].float()

    return torch.cat(model.in_lanes(work, _begun(blocks, layer, entering), len(blocks)))


def _begun(blocks: Blocks, layer: int, entering: torch.Tensor) -> Blocks:
    return replace(blocks, entering=Entering(layer, entering))
