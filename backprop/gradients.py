"""Exact gradients of an adapter's A and B, one layer at a time. The method is drawn in this package's docstring."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import TypeVar

import torch

from pocketllm.backprop.output_error import LOGIT_BYTES, label_error, output_error
from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.errors import TrainingDiverged, UnsupportedModel
from pocketllm.mezo.layers import LayerCall
from pocketllm.mezo.loss import NO_TARGET
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.network import Network

Found = TypeVar("Found")
#: Path of a linear map -> dLoss/dA (rank, in) and dLoss/dB (out, rank), fp32.
Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]
#: Takes the gradients of one layer's maps when they are complete.
OnLayer = Callable[[Gradients], None]
#: How far the loss of a pass layer by layer may be from that of the model's own code, as a part of it.
_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class PassSize:
    """What decides about memory and speed, and not about the result beyond rounding."""

    blocks: int  #: whose states are kept on the way up; further blocks take another pass
    rows_at_once: int  #: blocks that go through a layer together, in all lanes
    kept_layers: int = 0  #: so many layers, from the top, keep their linear maps' outputs for the way back


@dataclass(kw_only=True)
class _MicroBatch:
    """Some blocks on their way up and back."""

    blocks: Blocks
    of: int  #: which part of the batch they belong to
    weight: float  #: of each target
    calls: list[LayerCall] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)  #: what enters each layer from the lowest adapted one on
    kept: list[deque[torch.Tensor] | None] = field(default_factory=list)  #: of the same layers: see Walk.kept
    error: torch.Tensor | None = None  #: dLoss/dh behind the layer that comes next on the way back
    loss: float = 0.0  #: sum over its targets, nats


class LayerwiseGradients:
    """Takes gradients with respect to the factors of one adapter, which the model must be using."""

    def __init__(self, model: LanguageModel, adapter: Adapter, size: PassSize) -> None:
        """Raises UnsupportedModel where the model does not run layer by layer, or the adapter is not of its layers."""
        self._model, self._adapter, self._size = model, adapter, size
        self._paths: dict[int, list[str]] = defaultdict(list)
        for path in adapter.a:
            number = model.stack.number_of(path)
            if number is None:
                raise UnsupportedModel(f"{path} is in none of the model's layers. Use training.method = mezo.")
            self._paths[number].append(path)
        self._lowest = min(self._paths)
        self._first_kept = model.stack.count - size.kept_layers
        self._check()

    def __call__(self, batch: Sequence[tuple[Blocks, float]], on_layer: OnLayer) -> list[float]:
        """Each part's mean loss in nats per target; on_layer gets the gradients of their weighted sum.

        batch: parts with their weights. on_layer is called from the top layer down, and may change the factors that it
        gets gradients of. Raises TrainingDiverged where a loss is no number, before the first call of on_layer.
        """
        targets = [max(1, blocks.tokens) for blocks, _ in batch]
        unit = targets[0] / batch[0][1]  # the first part's targets count as one, so that fp16 holds the errors
        losses = [0.0] * len(batch)
        sums: Gradients = {}
        passes = list(self._passes(batch, unit))
        for number, micro_batches in enumerate(passes, 1):
            self._forward(micro_batches)
            for some in micro_batches:
                losses[some.of] += some.loss / targets[some.of]
            if not all(map(isfinite, losses)):
                raise TrainingDiverged(f"The loss is {sum(losses)}. Start again with a smaller training.rate.")
            self._backward(micro_batches, unit, sums, on_layer if number == len(passes) else None)
        return losses

    def _passes(self, batch: Sequence[tuple[Blocks, float]], unit: float) -> Iterator[list[_MicroBatch]]:
        """The batch in runs of blocks whose states may be kept at the same time."""
        lanes = self._model.lanes
        waiting: list[_MicroBatch] = []
        room = self._size.blocks
        for of, (blocks, weight) in enumerate(batch):
            # Of a part that is smaller than what fits, each lane gets a share.
            at_once = max(1, min(self._size.rows_at_once // lanes, -(-len(blocks) // lanes)))
            of_target = weight * unit / max(1, blocks.tokens)
            for some in blocks.split(at_once):
                if waiting and len(some) > room:
                    yield waiting
                    waiting, room = [], self._size.blocks
                waiting.append(_MicroBatch(blocks=some, of=of, weight=of_target))
                room -= len(some)
        yield waiting

    @torch.no_grad()
    def _forward(self, micro_batches: Sequence[_MicroBatch]) -> None:
        """From the words to the loss and its gradient behind the last layer."""
        self._model.map_lanes(self._enter, micro_batches)
        for number in range(self._model.stack.count):
            self._over(number, number + 1, partial(self._run, number=number), micro_batches)
        self._model.map_lanes(self._output, micro_batches)

    def _enter(self, lane: Network, some: _MicroBatch) -> None:
        hidden, some.calls = lane.layer_calls(some.blocks)
        some.states = [hidden]

    def _run(self, lane: Network, some: _MicroBatch, *, number: int) -> None:
        kept = lane.walk.kept = deque() if number >= self._first_kept else None
        hidden = lane.stack.run(number, some.states[-1], some.calls[number])
        lane.walk.kept = None
        if number < self._lowest:
            some.states = [hidden]  # nothing below learns
        else:
            some.states.append(hidden)
            some.kept.append(kept)

    def _output(self, lane: Network, some: _MicroBatch) -> None:
        """The loss, and its gradient behind the last layer: in closed form at the head, by autograd up to it."""
        blocks = some.blocks
        places = (blocks.targets != NO_TARGET).nonzero(as_tuple=True)
        with torch.enable_grad():
            leaving = some.states.pop().detach().requires_grad_()
            hidden = lane.behind_layers(blocks, leaving)
        rows, targets, head = hidden.detach()[places], blocks.targets[places], lane.head.at(None)
        if blocks.choices is None:
            losses, error = output_error(rows, head, targets, logit_bytes=LOGIT_BYTES // self._model.lanes)
        else:
            losses, error = label_error(rows, head, targets, blocks.choices)
        some.loss = float(losses.double().sum())
        at_hidden = torch.zeros_like(hidden)
        at_hidden[places] = (error * some.weight).to(hidden.dtype)
        (some.error,) = _vjp(hidden, [leaving], at_hidden)
        if lane.walk.release:
            lane.head.weights.weight.release()

    def _backward(
        self, micro_batches: Sequence[_MicroBatch], unit: float, sums: Gradients, on_layer: OnLayer | None
    ) -> None:
        """From the top down to the lowest adapted layer. Gradients are added to `sums`; complete ones leave it."""
        dtype = self._model.walk.dtype
        for number in reversed(range(self._lowest, self._model.stack.count)):
            paths = self._paths[number]
            leaves = [
                leaf.to(dtype).detach().requires_grad_()
                for path in paths
                for leaf in (self._adapter.a[path], self._adapter.b[path] * self._adapter.scaling)
            ]

            found = self._over(number, number - 1, partial(self._vjp, number=number, leaves=leaves), micro_batches)
            if paths:
                self._add(found, paths, unit, sums)
            if on_layer is not None and paths:
                on_layer({path: sums.pop(path) for path in paths})

    def _vjp(
        self, lane: Network, some: _MicroBatch, *, number: int, leaves: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """The gradients with respect to a layer's leaves; that with respect to what enters it becomes the error."""
        for path, a, b in zip(self._paths[number], leaves[::2], leaves[1::2], strict=True):
            branch = lane.linears[path].low_rank
            assert branch is not None, "the model uses the adapter"
            branch.leaves = (a, b)
        lane.walk.kept = some.kept.pop()
        with torch.enable_grad():
            hidden = some.states.pop().detach().requires_grad_()
            output = lane.stack.run(number, hidden, some.calls[number])
        assert some.error is not None
        some.error, *found = _vjp(output, [hidden, *leaves], some.error)
        lane.walk.kept = None
        return found

    def _add(self, found: Sequence[Sequence[torch.Tensor]], paths: Sequence[str], unit: float, sums: Gradients) -> None:
        """Add up what the micro-batches say, in their order: a sum of floats depends on it."""
        totals = [gradient.float() if gradient.dtype.itemsize < 4 else gradient for gradient in found[0]]
        for gradients in found[1:]:
            torch._foreach_add_(totals, [g.to(t.dtype) for g, t in zip(gradients, totals, strict=True)])
        torch._foreach_mul_(totals[::2], 1 / unit)
        torch._foreach_mul_(totals[1::2], self._adapter.scaling / unit)
        for path, a, b in zip(paths, totals[::2], totals[1::2], strict=True):
            before = sums.get(path)
            sums[path] = (a, b) if before is None else (before[0].add_(a), before[1].add_(b))

    def _over(
        self,
        number: int,
        following: int,
        work: Callable[[Network, _MicroBatch], Found],
        micro_batches: Sequence[_MicroBatch],
    ) -> list[Found]:
        """Let all micro-batches go through a layer, whose pages are in memory meanwhile; read the next one's ahead."""
        stack = self._model.stack
        if self._model.walk.release and 0 <= following < stack.count:
            for weight in stack.weights_of(following):
                weight.prefetch()
        found = self._model.map_lanes(work, micro_batches)
        self._release(number)
        return found

    def _release(self, number: int) -> None:
        """Give back the pages of a layer's weights, if pages are given back at all."""
        if self._model.walk.release:
            for weight in self._model.stack.weights_of(number):
                weight.release()

    @torch.no_grad()
    def _check(self) -> None:
        """Raise UnsupportedModel where layers hand more to each other than hidden states."""
        words = torch.tensor([[1, 2, 3]]).remainder(self._model.head.at(None).vocabulary)
        blocks = Blocks(inputs=words, targets=words)

        def check(lane: Network) -> None:
            expected = float(lane.block_sums(blocks, ()))
            some = _MicroBatch(blocks=blocks, of=0, weight=1.0)
            self._enter(lane, some)
            for number in range(lane.stack.count):
                self._run(lane, some, number=number)
                self._release(number)
            self._output(lane, some)
            if not abs(some.loss - expected) <= _TOLERANCE * abs(expected):
                raise UnsupportedModel(
                    "The model's layers hand more to each other than hidden states. Use training.method = mezo."
                )

        self._model.each_lane(check)


def _vjp(output: torch.Tensor, inputs: Sequence[torch.Tensor], error: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients of <output, error>. Given `error` as grad_outputs, torch would import sympy: 38 MB."""
    with torch.enable_grad():
        product = (output * error).sum()
    return torch.autograd.grad(product, inputs)
