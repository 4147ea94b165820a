"""The guide: which way the loss falls, as far as one forward pass tells.

The error at the output has a closed form (output_error.py). The stream carries it almost unchanged to the layers near
the top, since each adds little to what it is given: dL/dy of a map y = W x + B A x that writes into the stream is
about the error e at the stream's end. So

    dL/dB = sum over tokens of e (A x)^T

needs of the pass only the few numbers A x of each token. One step further back are the inner maps of a feed-forward
block (feed_forward.py). No backward pass, no autograd. For an adapter of the output head itself, and for the last
layer's feed-forward block, it is no approximation at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.loss import NO_TARGET
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.network import Network
from pocketllm.mezo.output_error import choice_error, output_error
from pocketllm.mezo.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What a guide keeps of a pass, at the positions with a target: (targets, ...) each."""

    wanted: torch.Tensor  #: the tokens that they shall predict
    hidden: torch.Tensor  #: what the output head takes in
    before: torch.Tensor  #: what the last norm takes in
    low: dict[int, torch.Tensor]  #: A x of the adapted maps, by number
    behind: dict[str, torch.Tensor]  #: what the norms behind maps take in, by path
    made: dict[str, torch.Tensor]  #: what the inner maps of feed-forward blocks put out, by path


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """What one look at a batch says."""

    loss: float  #: nats per target
    gradients: dict[str, torch.Tensor]  #: path -> (out, rank) fp32: dL/dB, exact for the head, a guess for the others


class Guide:
    """Looks at batches through an adapter of the head and of maps that the stream's error is led to."""

    def __init__(
        self,
        model: LanguageModel,
        stream: Stream,
        adapter: Adapter,
        carrying: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        """The adapter's B may change meanwhile; its maps and their A may not.

        carrying: layer -> how the stream that enters it is carried to the end (mezo/carrying.py); unchanged, where
        nothing is known.
        """
        self._carrying = carrying or {}
        self._model, self._stream, self._adapter = model, stream, adapter
        self._numbers = {path: number for number, path in enumerate(adapter.a)}
        self._blocks = {
            writer: block for writer, block in stream.blocks.items() if any(path in adapter.a for path in block.maps)
        }
        self._inner = [path for block in self._blocks.values() for path in block.maps]
        self._norms = [norm for path in adapter.a if (norm := stream.writers.get(path)) is not None]
        head = model.head_path
        self._head = adapter.b.get(head)
        self._head_gradient = None if self._head is None else torch.zeros_like(self._head)

    def look(self, batch: Blocks, rows_at_once: int) -> Guidance:
        """The batch's loss and the guide's gradients of it, valid until the next look.

        rows_at_once: the most blocks that pass through the layers together, in all lanes.
        """
        parts = self._model.in_lanes(self._watch, batch, rows_at_once)
        gradients = {path: torch.zeros_like(b) for path, b in self._adapter.b.items() if path != self._model.head_path}
        if self._head_gradient is not None:
            self._head_gradient.zero_()
        loss, count = 0.0, max(1, batch.tokens)
        for part in parts:
            losses, error = self._output_error(part, batch.choices)
            loss += float(losses.double().sum())
            carried = _Carried(self._stream.jacobian.transposed(error, part.before.float()), self._carrying)
            for path, at_output in self._errors(carried, part):
                gradients[path] += at_output.t() @ part.low[self._numbers[path]].float()
        if self._head_gradient is not None:
            gradients[self._model.head_path] = self._head_gradient
        for gradient in gradients.values():
            gradient *= self._adapter.scaling / count
        self._model.release_head()
        return Guidance(loss=loss / count, gradients=gradients)

    def _errors(self, carried: "_Carried", part: Watched) -> Iterator[tuple[str, torch.Tensor]]:
        """Path of each adapted map of the layers and the error at its output, (targets, out) fp32."""
        adapted = self._adapter.a
        for writer in self._stream.writers:
            block = self._blocks.get(writer)
            if writer not in adapted and block is None:
                continue
            error = self._at(writer, carried, part)
            if writer in adapted:
                yield writer, error
            if block is not None:
                function = self._model.network.get_submodule(block.function)
                inside = block.errors(self._model.linears[writer].led_back(error), part.made, function)
                yield from ((path, at_output) for path, at_output in inside if path in adapted)

    def _at(self, path: str, carried: "_Carried", part: Watched) -> torch.Tensor:
        """The error at a map's output: the stream's there, through the norm behind the map where there is one.

        The last map of a layer writes what enters the next one. Another one writes half way between the two.
        """
        layer = self._model.stack.number_of(path)
        assert layer is not None
        error = carried.to(layer + 1)
        if path != self._stream.last_of(path, self._model.stack):
            error = (error + carried.to(layer)) / 2
        norm = self._stream.writers[path]
        if norm is None:
            return error
        return self._stream.jacobians[norm].transposed(error, part.behind[norm].float())

    def _output_error(self, part: Watched, choices: Sequence[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (targets,) and dL/d(hidden) (targets, width); the head's own gradient is added up on the way."""
        head = self._model.head.at(None)
        extended = head.extended(part.hidden)
        width = part.hidden.shape[1]
        low = extended[:, width:]
        if choices is None:
            losses, error = output_error(extended, head, part.wanted, on_error=self._add_to_head(low))
        else:
            losses, error, of_choices = choice_error(extended, head, part.wanted, choices)
            if self._head_gradient is not None:
                self._head_gradient[list(choices)] += of_choices.t() @ low.float()
        if self._head is None:
            return losses, error
        through_adapter = error[:, width:] @ self._adapter.a[self._model.head_path]
        return losses, error[:, :width] + through_adapter

    def _add_to_head(self, low: torch.Tensor) -> Callable[[int, int, torch.Tensor], None] | None:
        into = self._head_gradient
        if into is None:
            return None

        def add(first: int, start: int, error: torch.Tensor) -> None:
            into[start : start + error.shape[1]] += error.t() @ low[first : first + len(error)]

        return add

    def _watch(self, network: Network, blocks: Blocks) -> Watched:
        places = (blocks.targets != NO_TARGET).flatten().nonzero()[:, 0]

        def at_targets(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.reshape(len(blocks.inputs.flatten()), -1)[places]

        network.walk.recorded = {}
        try:
            with (
                inputs_of(network, [self._stream.norm, *self._norms]) as taken,
                outputs_of(network, self._inner, at_targets) as made,
            ):
                hidden = at_targets(network.hidden(blocks))
            recorded = {number: at_targets(low) for number, low in network.walk.recorded.items()}
        finally:
            network.walk.recorded = None
        norms = {path: at_targets(tensor) for path, tensor in taken.items()}
        return Watched(
            wanted=blocks.targets.flatten()[places],
            hidden=hidden,
            before=norms.pop(self._stream.norm),
            low=recorded,
            behind=norms,
            made=made,
        )


class _Carried:
    """The stream's error at its end, carried back to where it enters a layer: J^T e for each token, each once."""

    def __init__(self, at_end: torch.Tensor, carrying: Mapping[int, torch.Tensor]) -> None:
        self._at_end, self._carrying = at_end, carrying
        self._found: dict[int, torch.Tensor] = {}

    def to(self, layer: int) -> torch.Tensor:
        """(targets, width) fp32. J being the mean over tokens, it is what is known of the layers above."""
        if layer not in self._found:
            jacobian = self._carrying.get(layer)
            self._found[layer] = self._at_end if jacobian is None else self._through(jacobian)
        return self._found[layer]

    def _through(self, jacobian: torch.Tensor) -> torch.Tensor:
        return (self._at_end.to(jacobian.dtype) @ jacobian).to(self._at_end.dtype)


@contextmanager
def inputs_of(network: Network, paths: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What these modules take in meanwhile, by path."""
    taken: dict[str, torch.Tensor] = {}

    def note(path: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        taken[path] = inputs[0]

    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(network.module.get_submodule(path).register_forward_pre_hook(partial(note, path)))
        yield taken


@contextmanager
def outputs_of(
    network: Network, paths: Sequence[str], part: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """A part of what these modules put out meanwhile, by path."""
    made: dict[str, torch.Tensor] = {}

    def note(path: str, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        made[path] = part(output)

    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(network.module.get_submodule(path).register_forward_hook(partial(note, path)))
        yield made
