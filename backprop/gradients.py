"""Exact gradients of an adapter's A and B, one layer at a time; see the equations in this package's docstring."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod

import torch

from pocketllm.backprop.graph_layer import vjp
from pocketllm.backprop.layer_choice import choose_layers
from pocketllm.backprop.output_error import output_error
from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, power_of_two
from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.shapes import DENSE_LAYER_BYTES
from pocketllm.engine.streamed.context import Scratch
from pocketllm.engine.streamed.layers import LayerCall
from pocketllm.engine.streamed.model import LanguageModel

#: What the passes of a batch have summed: for each linear map "a.PATH", dLoss/dA (rank, in), and "b.PATH", dLoss/dB
#: (out, rank), fp32; "losses", (parts,) float64, in nats; and "passes", their number.
Sums = dict[str, torch.Tensor]


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
        self.states.append(self.slots[len(self.states)].copy_(state))

    def free(self) -> None:
        """Give memory back before the next pass."""
        self.calls, self.states, self.slots, self.activations, self.error = [], [], [], {}, None


class LayerwiseGradients:
    """Computes the gradients of one adapter, which must be the model's current parameters."""

    def __init__(self, model: LanguageModel, adapter: Adapter, size: PassSize) -> None:
        """Raises UnsupportedModel if the model cannot run layer by layer, or the adapter is not of its layers."""
        self._model, self._stack, self._adapter, self._size = model, model.stack, adapter, size
        self._kept_states, self._kept_activations = Scratch(), Scratch()
        self._layers = choose_layers(model, adapter)
        self._lowest = min(number for number, layer in enumerate(self._layers) if layer.paths)

    def __call__(self, batch: Sequence[tuple[Batch, float]], sums: Sums) -> bool:
        """Add the next pass of a batch to its sums, which are empty before the first; returns whether it was the last.

        The gradients are of the parts' weighted mean losses. batch: parts and their weights. Raises TrainingDiverged if
        a loss is not finite.
        """
        targets = [max(1, blocks.tokens) for blocks, _ in batch]
        unit = targets[0] / batch[0][1]  # scales the first part's errors to 1, so that they fit fp16
        of_target = torch.tensor(
            [weight * unit / count for (_, weight), count in zip(batch, targets, strict=True)], dtype=torch.float64
        )
        passes, done = list(self._passes([blocks for blocks, _ in batch])), int(sums.get("passes", 0))
        losses = sums.setdefault("losses", torch.zeros(len(batch), dtype=torch.float64))
        for micro, found in zip(passes[done], self._forward(passes[done], of_target), strict=True):
            losses.index_add_(0, micro.parts, found)
        if not isfinite(total := float(losses.sum())):
            raise TrainingDiverged(f"The loss is {total}. Start again with a smaller training.rate.")
        self._backward(passes[done], unit, sums)
        sums["passes"] = torch.tensor(done + 1)
        return done + 1 == len(passes)

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
        for micro in micro_batches:
            hidden, micro.calls = self._model.layer_calls(micro.blocks)
            micro.states = [hidden]
        self._make_slots(micro_batches)
        for number in range(self._stack.count):
            with self._stack.held(number, number + 1, DENSE_LAYER_BYTES):
                layer = self._layers[number]
                layer.load()
                for micro in micro_batches:
                    kept = micro.activations.get(number, ())
                    hidden = layer.forward(micro.states[-1], micro.calls[number], kept)
                    if number < self._lowest:
                        micro.states.clear()  # no layer below is adapted
                    micro.keep(hidden)
        return [self._output(micro, of_target) for micro in micro_batches]

    def _make_slots(self, micro_batches: Sequence[_MicroBatch]) -> None:
        """Keep all states of a pass in one piece of memory, and all activations in another.

        As pieces of their own they would leave holes in the heap, which grows from step to step.
        """
        first = micro_batches[0].states[0]
        sizes = [micro.states[0].numel() for micro in micro_batches]
        whole = self._kept_states.take((self._stack.count - self._lowest + 1, sum(sizes)), first.dtype)
        for micro, piece in zip(micro_batches, torch.split(whole, sizes, dim=1), strict=True):
            first = micro.states.pop()
            micro.slots = [row.view(first.shape) for row in piece]
            micro.keep(first)
        numbers = range(max(self._lowest, self._stack.count - self._size.kept), self._stack.count)
        shapes = [
            (micro, number, (micro.blocks.inputs.numel(), width))
            for number in numbers
            for micro in micro_batches
            for width in self._layers[number].widths
        ]
        dtype = torch.bfloat16 if first.dtype == torch.float32 else first.dtype
        flat = self._kept_activations.take((sum(map(prod, (shape for *_, shape in shapes))),), dtype)
        for (micro, number, shape), piece in zip(shapes, flat.split([prod(s) for *_, s in shapes]), strict=True):
            micro.activations.setdefault(number, []).append(piece.view(shape))

    def _output(self, micro: _MicroBatch, of_target: torch.Tensor) -> torch.Tensor:
        """Each block's summed loss, (blocks,) float64, in nats. Sets the error at the last layer's output.

        The error is in closed form at the head's input; autograd takes it through the final norm.
        """
        blocks = micro.blocks
        places = (blocks.targets != IGNORE_INDEX).nonzero(as_tuple=True)
        with torch.enable_grad():
            last = micro.states.pop().detach().requires_grad_()
            hidden = self._model.behind_layers(blocks, last)
        head = self._model.head.at(None)
        losses, error = output_error(hidden.detach()[places], head, blocks.targets[places], blocks.label_ids)
        dh = torch.zeros_like(hidden)
        dh[places] = (error * of_target[micro.parts][places[0], None]).to(hidden.dtype)
        (micro.error,) = vjp(hidden, [last], dh)
        if self._model.context.release:
            self._model.head.weight.release()
        return torch.zeros(len(blocks), dtype=torch.float64).index_add_(0, places[0], losses.double())

    def _backward(self, micro_batches: Sequence[_MicroBatch], unit: float, sums: Sums) -> None:
        """From the top to the lowest adapted layer: add to the sums."""
        for number in reversed(range(self._lowest, self._stack.count)):
            layer, found = self._layers[number], []
            with self._stack.held(number, number - 1, DENSE_LAYER_BYTES):
                layer.load()
                for micro in micro_batches:
                    assert micro.error is not None
                    kept = micro.activations.pop(number, ())
                    micro.error, of_maps = layer.vjp(micro.states.pop(), micro.calls[number], micro.error, kept)
                    found.append(of_maps)
            if layer.paths:
                self._add(found, layer.paths, unit, sums)
        for micro in micro_batches:
            micro.free()

    def _add(self, found: Sequence[Sequence[torch.Tensor]], paths: Sequence[str], unit: float, sums: Sums) -> None:
        """Add the micro-batches' gradients in order, since a sum of floats depends on it."""
        totals = [gradient.float() if gradient.dtype.itemsize < 4 else gradient for gradient in found[0]]
        for of_maps in found[1:]:
            torch._foreach_add_(totals, [g.to(t.dtype) for g, t in zip(of_maps, totals, strict=True)])
        torch._foreach_mul_(totals[::2], 1 / unit)
        torch._foreach_mul_(totals[1::2], self._adapter.scaling / unit)
        for name, gradient in zip((f"{factor}.{path}" for path in paths for factor in "ab"), totals, strict=True):
            sums[name] = sums[name].add_(gradient) if name in sums else gradient
