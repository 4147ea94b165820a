"""The stream that runs through a causal model, found by looking: its last norm, and the linear maps that write into it.

A layer adds to the stream what some of its maps make (o_proj and down_proj in Llama's kind, out_proj and fc2 in OPT),
in some families through one more norm (Gemma). No list of names: a small walk shows what is whose input, and what
comes out of the last layer when a map's output is moved shows who writes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.errors import UnsupportedModel
from pocketllm.mezo.feed_forward import Call, FeedForward, find_feed_forward, same
from pocketllm.mezo.layers import LayerStack
from pocketllm.mezo.network import Network
from pocketllm.mezo.output_error import NormJacobian
from pocketllm.mezo.streaming import StreamedLinear

#: Words of the walk that is looked at.
_WORDS = 4
#: How far a map's output is moved, over the root mean square of the stream.
_MOVED = 0.25
#: The least cosine between that and what comes out of the layer, for a map that writes into the stream.
_LEAST_COSINE = 0.5


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Where the error at the output can be led to. Paths are those of the network's modules."""

    norm: str  #: the last norm, whose output is what the head takes in
    jacobian: NormJacobian  #: of that norm
    writers: dict[str, str | None]  #: path of each map that writes, in model order -> the norm behind it, if any
    jacobians: dict[str, NormJacobian]  #: of these norms, by path
    blocks: dict[str, FeedForward]  #: path of a map that writes -> what it ends, where it ends a feed-forward block

    def last_of(self, path: str, stack: LayerStack) -> str:
        """The last of the maps that write into the stream from the same layer as this one."""
        return [other for other in self.writers if stack.number_of(other) == stack.number_of(path)][-1]

    @property
    def led_to(self) -> tuple[str, ...]:
        """Paths of the maps that the error can be led to: those that write, and those inside the blocks they end."""
        return tuple(
            path
            for writer in self.writers
            for path in (*(self.blocks[writer].maps if writer in self.blocks else ()), writer)
        )

    @property
    def width(self) -> int:
        """Numbers a word."""
        return len(self.jacobian.gain)


def find_stream(network: Network) -> Stream:
    """Look at a walk of a few words, at the base's weights. Raises UnsupportedModel when there is no such stream."""
    network.use(None)
    words = torch.arange(_WORDS).remainder(network.head.at(None).vocabulary)[None]
    blocks = Blocks(inputs=words, targets=words)
    with _calls(network) as calls:
        seen = network.hidden(blocks)
    norm = next((path for path, _, output in calls if same(output, seen) and path not in network.linears), None)
    if norm is None or network.stack.count == 0:
        raise UnsupportedModel(
            "The model has no norm between its layers and its output head, or its layers are not a list: the guide has "
            "no way in. Use training.method = mezo."
        )
    before = next(taken for path, taken, _ in calls if path == norm)
    last = network.stack.count - 1
    endings = []
    ended: dict[str, FeedForward] = {}
    for path in [path for path in network.linears if network.stack.number_of(path) == last]:
        if network.linears[path].out_features == before.shape[-1]:
            made = next(output for called, _, output in calls if called == path)
            behind = next((called for called, taken, _ in calls if same(taken, made) and called != norm), None)
            if _writes(network, blocks, behind or path, before):
                endings.append((_ending(path), behind))
                if block := find_feed_forward(network, calls, path):
                    ended[_ending(path)] = block
    writers = {
        path: behind and _beside(path, behind)
        for path in network.linears
        for ending, behind in endings
        if network.stack.number_of(path) is not None and _ending(path) == ending
    }
    if not writers:
        raise UnsupportedModel("No linear map of the model writes into its stream. Use training.method = mezo.")
    norms = [path for path in dict.fromkeys(writers.values()) if path is not None]
    return Stream(
        norm=norm,
        jacobian=_jacobian(network, norm, before),
        writers=writers,
        jacobians={path: _jacobian(network, path, before) for path in norms},
        blocks={path: _like(ended[_ending(path)], path) for path in writers if _ending(path) in ended},
    )


def _ending(path: str) -> str:
    """What the path says behind the layer's number."""
    parts = path.split(".")
    number = next(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[number + 1 :])


def _beside(path: str, other: str) -> str:
    """The module of this path's layer that is there what the other is in its own."""
    return path.removesuffix(_ending(path)) + _ending(other)


def _like(block: FeedForward, writer: str) -> FeedForward:
    """The same block in the layer of this map that writes."""
    return FeedForward(
        function=_beside(writer, block.function),
        through=_beside(writer, block.through),
        beside=block.beside and _beside(writer, block.beside),
    )


def _jacobian(network: Network, path: str, like: torch.Tensor) -> NormJacobian:
    return NormJacobian.measured(network.module.get_submodule(path), like.shape[-1], like.dtype)


def _writes(network: Network, blocks: Blocks, path: str, stream: torch.Tensor) -> bool:
    """Whether what this module puts out comes out of the last layer as it is, more or less."""
    size = stream.float().square().mean().sqrt()
    signs = torch.ones_like(stream[0, -1])
    signs[1::2] = -1
    signs[::3] *= -1
    moved = signs * size * _MOVED

    def move(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output.view(-1, len(moved))[-1] += moved  # of the last word; some models flatten the batch
        return output

    hook = network.module.get_submodule(path).register_forward_hook(move)
    try:
        with _calls(network) as calls:
            seen = network.hidden(blocks)
    finally:
        hook.remove()
    after = next(taken for _, taken, output in calls if same(output, seen))
    difference = (after - stream)[0, -1].float()
    return bool(torch.cosine_similarity(difference, moved.float(), dim=0) > _LEAST_COSINE)


@contextmanager
def _calls(network: Network) -> Iterator[list[Call]]:
    """Path, input and output of each linear map and small module that is called meanwhile, in order.

    All of them are held on to, so that one tensor's memory is not another's.
    """
    calls: list[Call] = []

    def note(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
                calls.append((path, inputs[0], output))

        return hook

    hooks = [
        module.register_forward_hook(note(path))
        for path, module in network.module.named_modules()
        if isinstance(module, StreamedLinear) or (next(module.children(), None) is None and module is not network.head)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
