"""Exact gradients of an adapter's A and B, one layer at a time; see the equations in this package's docstring."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite, prod

import torch

from pocketllm.backprop.graph_layer import GraphLayer, vjp
from pocketllm.backprop.llama_layer import LlamaLayer
from pocketllm.backprop.output_error import output_error
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import TrainingDiverged, UnsupportedModel
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.shapes import DENSE_LAYER_BYTES, LLAMA_MAPS, is_of_llamas_kind
from pocketllm.engine.streamed.layers import LayerCall
from pocketllm.engine.streamed.loss import IGNORE_INDEX, power_of_two
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.weights import DenseWeights, Scratch

#: Path of a linear map -> dLoss/dA (rank, in) and dLoss/dB (out, rank), fp32.
Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]
#: Receives the gradients of one layer's linear maps when they are complete.
OnLayer = Callable[[Gradients], None]
#: Allowed relative difference: between the loss computed layer by layer and that of the model's own code; and, in fp32,
#: between what a layer adds by hand and by its own code.
_TOLERANCE, _BY_HAND_TOLERANCE = 0.02, 1e-3


@dataclass(frozen=True, kw_only=True)
class PassSize:
    """Memory and speed of a pass, in positions; the result depends on it only by rounding."""

    stored: int  #: positions whose states are stored at a time; more take another pass
    micro_batch: int  #: positions that go through a layer together; at least one block does
    kept: int = 0  #: layers, from the top, whose activations are kept; the others compute them again


@dataclass(kw_only=True)
class _MicroBatch:
    """Some blocks and their state during a pass."""

    blocks: Batch
    parts: torch.Tensor  #: (blocks,) int64: the part of the batch that each belongs to
    calls: list[LayerCall] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)  #: the input of each layer from the lowest adapted one on
    slots: list[torch.Tensor] = field(default_factory=list)  #: where the states are kept, in their order
    activations: dict[int, list[torch.Tensor]] = field(default_factory=dict)  #: of the layers that keep theirs
    error: torch.Tensor | None = None  #: dLoss/dh, h being the output of the layer whose backward pass is next

    def keep(self, state: torch.Tensor) -> None:
        """Add a state."""
        self.states.append(self.slots[len(self.states)].copy_(state) if self.slots else state)

    def free(self) -> None:
        """Give memory back before the next pass."""
        self.calls, self.states, self.slots, self.activations, self.error = [], [], [], {}, None


class LayerwiseGradients:
    """Computes the gradients of one adapter, which must be the model's current parameters."""

    def __init__(self, model: LanguageModel, adapter: Adapter, size: PassSize) -> None:
        """Raises UnsupportedModel if the model cannot run layer by layer, or the adapter is not of its layers."""
        paths: dict[int, list[str]] = defaultdict(list)
        for path in adapter.a:
            number = model.stack.number_of(path)
            if number is None:
                raise UnsupportedModel(f"{path} is in none of the model's layers. Use training.method = mezo.")
            paths[number].append(path)
        self._adapter, self._size = adapter, size
        self._model, self._stack, self._context = model, model.stack, model.context
        self._dense, self._kept_states, self._kept_activations = DenseWeights(), Scratch(), Scratch()
        self._lowest = min(paths)
        self._layers: list[GraphLayer | LlamaLayer] = [
            GraphLayer(self._model, number, paths[number], adapter) for number in range(self._stack.count)
        ]
        self._check()

    def __call__(self, batch: Sequence[tuple[Batch, float]], on_layer: OnLayer) -> list[float]:
        """Each part's mean loss in nats per target; on_layer receives the gradients of their weighted sum.

        batch: parts and their weights. on_layer is called from the top layer down, and may change the A and B whose
        gradients it receives. Raises TrainingDiverged, before the first call of on_layer, if a loss is not finite.
        """
        targets = [max(1, blocks.tokens) for blocks, _ in batch]
        unit = targets[0] / batch[0][1]  # scales the first part's errors to 1, so that they fit fp16
        of_target = torch.tensor(
            [weight * unit / count for (_, weight), count in zip(batch, targets, strict=True)], dtype=torch.float64
        )
        losses = torch.zeros(len(batch), dtype=torch.float64)
        sums: Gradients = {}
        passes = list(self._passes([blocks for blocks, _ in batch]))
        for number, micro_batches in enumerate(passes, 1):
            for some, found in zip(micro_batches, self._forward(micro_batches, of_target), strict=True):
                losses.index_add_(0, some.parts, found)
            if not isfinite(total := float(losses.sum())):
                raise TrainingDiverged(f"The loss is {total}. Start again with a smaller training.rate.")
            self._backward(micro_batches, unit, sums, on_layer if number == len(passes) else None)
        return [float(loss) / count for loss, count in zip(losses, targets, strict=True)]

    def _passes(self, batch: Sequence[Batch]) -> Iterator[list[_MicroBatch]]:
        """Split the batch into passes, whose states fit in memory, and those into micro-batches.

        Consecutive parts of the same kind share micro-batches.
        """
        runs: list[tuple[Batch, list[int]]] = []
        for part, blocks in enumerate(batch):
            of = [part] * len(blocks)
            if runs and runs[-1][0].kind == blocks.kind:
                runs[-1] = (runs[-1][0].concatenated(blocks), runs[-1][1] + of)
            else:
                runs.append((blocks, of))
        current: list[_MicroBatch] = []
        free = self._size.stored
        for blocks, parts in runs:
            at_once = power_of_two(self._size.micro_batch // blocks.inputs.shape[1])
            for some, its in zip(blocks.split(at_once), torch.split(torch.tensor(parts), at_once), strict=True):
                some = some.rounded()
                its = torch.cat((its, its[-1:].expand(len(some) - len(its))))
                if current and some.inputs.numel() > free:
                    yield current
                    current, free = [], self._size.stored
                current.append(_MicroBatch(blocks=some, parts=its))
                free -= some.inputs.numel()
        yield current

    @torch.no_grad()
    def _forward(self, micro_batches: Sequence[_MicroBatch], of_target: torch.Tensor) -> list[torch.Tensor]:
        """From token ids to the loss and its gradient at the last layer's output. Returns each block's loss.

        of_target: (parts,), the weight of a target in each part.
        """
        for some in micro_batches:
            hidden, some.calls = self._model.layer_calls(some.blocks)
            some.states = [hidden]
        self._make_slots(micro_batches)
        for number in range(self._stack.count):
            with self._layer(number, number + 1):
                for some in micro_batches:
                    self._run(some, number)
        return [self._output(some, of_target) for some in micro_batches]

    def _make_slots(self, micro_batches: Sequence[_MicroBatch]) -> None:
        """Keep all states of a pass in one piece of memory, and all activations in another.

        As pieces of their own they would leave holes in the heap, which grows from step to step.
        """
        first = micro_batches[0].states[0]
        sizes = [some.states[0].numel() for some in micro_batches]
        whole = self._kept_states.take((self._stack.count - self._lowest + 1, sum(sizes)), first.dtype)
        for some, piece in zip(micro_batches, torch.split(whole, sizes, dim=1), strict=True):
            first = some.states.pop()
            some.slots = [row.view(first.shape) for row in piece]
            some.keep(first)
        numbers = range(max(self._lowest, self._stack.count - self._size.kept), self._stack.count)
        shapes = [
            (some, number, (some.blocks.inputs.numel(), width))
            for number in numbers
            for some in micro_batches
            for width in self._layers[number].widths
        ]
        dtype = torch.bfloat16 if first.dtype == torch.float32 else first.dtype
        flat = self._kept_activations.take((sum(map(prod, (shape for *_, shape in shapes))),), dtype)
        for (some, number, shape), piece in zip(shapes, flat.split([prod(s) for *_, s in shapes]), strict=True):
            some.activations.setdefault(number, []).append(piece.view(shape))

    def _run(self, some: _MicroBatch, number: int) -> None:
        layer, call, keep = self._layers[number], some.calls[number], some.activations.get(number, ())
        hidden = layer.forward(some.states[-1], call, keep)
        if number < self._lowest:
            some.states.clear()  # no layer below is adapted
        some.keep(hidden)

    def _output(self, some: _MicroBatch, of_target: torch.Tensor) -> torch.Tensor:
        """Each block's summed loss, (blocks,) float64, in nats. Sets the error at the last layer's output.

        The error is in closed form at the head's input; autograd takes it through the final norm.
        """
        blocks = some.blocks
        places = (blocks.targets != IGNORE_INDEX).nonzero(as_tuple=True)
        with torch.enable_grad():
            last = some.states.pop().detach().requires_grad_()
            hidden = self._model.behind_layers(blocks, last)
        head = self._model.head.at(None)
        losses, error = output_error(hidden.detach()[places], head, blocks.targets[places], blocks.label_ids)
        at_hidden = torch.zeros_like(hidden)
        at_hidden[places] = (error * of_target[some.parts][places[0], None]).to(hidden.dtype)
        (some.error,) = vjp(hidden, [last], at_hidden)
        if self._context.release:
            self._model.head.weight.release()
        return torch.zeros(len(blocks), dtype=torch.float64).index_add_(0, places[0], losses.double())

    def _backward(
        self, micro_batches: Sequence[_MicroBatch], unit: float, sums: Gradients, on_layer: OnLayer | None
    ) -> None:
        """From the top to the lowest adapted layer: add gradients to `sums`, or pass them to on_layer if complete."""
        for number in reversed(range(self._lowest, self._stack.count)):
            found = []
            with self._layer(number, number - 1) as layer:
                for some in micro_batches:
                    assert some.error is not None
                    kept = some.activations.pop(number, ())
                    some.error, gradients = layer.vjp(some.states.pop(), some.calls[number], some.error, kept)
                    found.append(gradients)
            if layer.paths:
                self._add(found, layer.paths, unit, sums)
            if on_layer is not None and layer.paths:
                on_layer({path: sums.pop(path) for path in layer.paths})
        for some in micro_batches:
            some.free()

    def _add(self, found: Sequence[Sequence[torch.Tensor]], paths: Sequence[str], unit: float, sums: Gradients) -> None:
        """Add the micro-batches' gradients in order, since a sum of floats depends on it."""
        totals = [gradient.float() if gradient.dtype.itemsize < 4 else gradient for gradient in found[0]]
        for gradients in found[1:]:
            torch._foreach_add_(totals, [g.to(t.dtype) for g, t in zip(gradients, totals, strict=True)])
        torch._foreach_mul_(totals[::2], 1 / unit)
        torch._foreach_mul_(totals[1::2], self._adapter.scaling / unit)
        for path, a, b in zip(paths, totals[::2], totals[1::2], strict=True):
            before = sums.get(path)
            sums[path] = (a, b) if before is None else (before[0].add_(a), before[1].add_(b))

    @contextmanager
    def _layer(self, number: int, following: int) -> Iterator[GraphLayer | LlamaLayer]:
        """Load a layer, its weights dense if that is small, and prefetch the following layer's weights."""
        dense = sum(prod(w.shape) for w in self._stack.weights_of(number)) * self._context.dtype.itemsize
        self._context.dense = self._dense if dense <= DENSE_LAYER_BYTES else None
        try:
            with self._stack.loaded(number, following):
                self._layers[number].load()
                yield self._layers[number]
        finally:
            self._context.dense = None
            self._dense.clear()

    @torch.no_grad()
    def _check(self) -> None:
        """Find the layers of Llama's kind. Raise UnsupportedModel if layers pass on more than hidden states."""
        words = torch.tensor([[1, 2, 3]]).remainder(self._model.head.at(None).vocabulary)
        blocks = Batch(inputs=words, targets=words)
        expected = float(self._model.block_sums(blocks, ()))
        some = _MicroBatch(blocks=blocks, parts=torch.tensor([0]))
        hidden, some.calls = self._model.layer_calls(blocks)
        some.states = [hidden]
        for number in range(self._stack.count):
            with self._layer(number, number + 1):
                self._run(some, number)
            self._try_by_hand(number, some)
        loss = float(self._output(some, torch.ones(1, dtype=torch.float64)).sum())
        # Where the model itself overflows on these words, as in fp16, a step will tell.
        if isfinite(expected) and not abs(loss - expected) <= _TOLERANCE * abs(expected):
            raise UnsupportedModel(
                "The model's layers pass more to each other than hidden states. Use training.method = mezo."
            )

    def _try_by_hand(self, number: int, some: _MicroBatch) -> None:
        """Differentiate a layer of Llama's kind by hand, if all maps have adapters and a trial shows no difference."""
        layer, config, dtype = self._layers[number], self._model.network.config, self._context.dtype
        if not is_of_llamas_kind(partial(getattr, config)) or len(layer.paths) < len(LLAMA_MAPS):
            return
        by_hand = LlamaLayer(self._stack.layers[number], f"{self._stack.path}.{number}", self._adapter)
        self._context.dtype = trial = torch.promote_types(dtype, torch.float32)
        x, call, added = some.states[-2].to(trial), some.calls[number], []
        try:
            for way in (layer, by_hand):
                self._layers[number] = way
                with self._layer(number, number + 1):
                    added.append(way.forward(x, call) - x)
        finally:
            self._context.dtype = dtype
        if not float((added[1] - added[0]).norm()) <= _BY_HAND_TOLERANCE * float(added[0].norm()):
            self._layers[number] = layer
