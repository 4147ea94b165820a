"""Exact gradients of an adapter's A and B, one layer at a time; see the equations in this package's docstring."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite, prod

import torch

from pocketllm.backprop.output_error import label_error, output_error
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import TrainingDiverged, UnsupportedModel
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.shapes import DENSE_LAYER_BYTES
from pocketllm.engine.streamed.layers import LayerCall
from pocketllm.engine.streamed.loss import IGNORE_INDEX, power_of_two
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.modules import StreamedLinear
from pocketllm.engine.streamed.weights import DenseWeights

#: Path of a linear map -> dLoss/dA (rank, in) and dLoss/dB (out, rank), fp32.
Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]
#: Receives the gradients of one layer's linear maps when they are complete.
OnLayer = Callable[[Gradients], None]
#: Allowed relative difference between the loss computed layer by layer and that of the model's own code.
_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class PassSize:
    """Memory and speed of a pass, in positions; the result depends on it only by rounding."""

    stored: int  #: positions whose states are stored at a time; more take another pass
    micro_batch: int  #: positions that go through a layer together; at least one block does


@dataclass(kw_only=True)
class _MicroBatch:
    """Some blocks and their state during a pass."""

    blocks: Batch
    parts: torch.Tensor  #: (blocks,) int64: the part of the batch that each belongs to
    calls: list[LayerCall] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)  #: the input of each layer from the lowest adapted one on
    slots: list[torch.Tensor] = field(default_factory=list)  #: where the states are kept, in their order
    error: torch.Tensor | None = None  #: dLoss/dh, h being the output of the layer whose backward pass is next

    def keep(self, state: torch.Tensor) -> None:
        """Add a state."""
        self.states.append(self.slots[len(self.states)].copy_(state) if self.slots else state)

    def free(self) -> None:
        """Give memory back before the next pass."""
        self.calls, self.states, self.slots, self.error = [], [], [], None


class LayerwiseGradients:
    """Computes the gradients of one adapter, which must be the model's current parameters."""

    def __init__(self, model: LanguageModel, adapter: Adapter, size: PassSize) -> None:
        """Raises UnsupportedModel if the model cannot run layer by layer, or the adapter is not of its layers."""
        self._adapter, self._size = adapter, size
        self._paths: dict[int, list[str]] = defaultdict(list)
        for path in adapter.a:
            number = model.stack.number_of(path)
            if number is None:
                raise UnsupportedModel(f"{path} is in none of the model's layers. Use training.method = mezo.")
            self._paths[number].append(path)
        self._network, self._stack, self._context = model.first_replica, model.stack, model.context
        self._dense = DenseWeights()
        self._lowest = min(self._paths)
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
            hidden, some.calls = self._network.layer_calls(some.blocks)
            some.states = [hidden]
        self._make_slots(micro_batches)
        for number in range(self._stack.count):
            with self._layer(number, number + 1):
                for some in micro_batches:
                    self._run(some, number)
        return [self._output(some, of_target) for some in micro_batches]

    def _make_slots(self, micro_batches: Sequence[_MicroBatch]) -> None:
        """Keep all states of a pass in one piece of memory, which goes back to the system as a whole.

        As pieces of their own they would leave holes in the heap, which grows from step to step.
        """
        count = self._stack.count - self._lowest + 1
        sizes = [some.states[0].numel() for some in micro_batches]
        whole = micro_batches[0].states[0].new_empty(count, sum(sizes))
        for some, piece in zip(micro_batches, torch.split(whole, sizes, dim=1), strict=True):
            first = some.states.pop()
            some.slots = [row.view(first.shape) for row in piece]
            some.keep(first)

    def _run(self, some: _MicroBatch, number: int) -> None:
        hidden = self._stack.run(number, some.states[-1], some.calls[number])
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
            hidden = self._network.behind_layers(blocks, last)
        rows, targets, head = hidden.detach()[places], blocks.targets[places], self._network.head.at(None)
        if blocks.label_ids is None:
            losses, error = output_error(rows, head, targets)
        else:
            losses, error = label_error(rows, head, targets, blocks.label_ids)
        at_hidden = torch.zeros_like(hidden)
        at_hidden[places] = (error * of_target[some.parts][places[0], None]).to(hidden.dtype)
        (some.error,) = _vjp(hidden, [last], at_hidden)
        if self._context.release:
            self._network.head.weights.weight.release()
        return torch.zeros(len(blocks), dtype=torch.float64).index_add_(0, places[0], losses.double())

    def _backward(
        self, micro_batches: Sequence[_MicroBatch], unit: float, sums: Gradients, on_layer: OnLayer | None
    ) -> None:
        """From the top to the lowest adapted layer: add gradients to `sums`, or pass them to on_layer if complete."""
        for number in reversed(range(self._lowest, self._stack.count)):
            paths = self._paths[number]
            leaves = [
                leaf.to(self._context.dtype).detach().requires_grad_()
                for path in paths
                for leaf in (self._adapter.a[path], self._adapter.b[path] * self._adapter.scaling)
            ]
            with self._layer(number, number - 1):
                found = [self._vjp(some, number, leaves) for some in micro_batches]
            if paths:
                self._add(found, paths, unit, sums)
            if on_layer is not None and paths:
                on_layer({path: sums.pop(path) for path in paths})
        for some in micro_batches:
            some.free()

    def _vjp(self, some: _MicroBatch, number: int, leaves: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The gradients with respect to a layer's leaves; the one with respect to its input becomes the error."""
        for path, a, b in zip(self._paths[number], leaves[::2], leaves[1::2], strict=True):
            branch = self._network.linears[path].lora
            assert branch is not None, "the adapter is the model's current parameters"
            branch.leaves = (a, b)
        assert some.error is not None
        some.error, *found = self._layer_vjp(number, some.states.pop(), some.calls[number], some.error, leaves)
        return found

    def _layer_vjp(
        self,
        number: int,
        state: torch.Tensor,
        call: LayerCall,
        error: torch.Tensor,
        leaves: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of <layer(state), error> with respect to `state` and the leaves."""
        with torch.enable_grad():
            hidden = state.detach().requires_grad_()
            output = self._stack.run(number, hidden, call)
        return _vjp(output, [hidden, *leaves], error)

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
    def _layer(self, number: int, following: int | None = None) -> Iterator[None]:
        """Keep a layer's weights in memory, dense if that is small, and prefetch the following layer's."""
        release = self._context.release
        if release and following is not None and 0 <= following < self._stack.count:
            for weight in self._stack.weights_of(following):
                weight.prefetch()
        weights = self._stack.weights_of(number)
        dense = sum(prod(weight.shape) for weight in weights) * self._context.dtype.itemsize
        self._context.dense = self._dense if dense <= DENSE_LAYER_BYTES else None
        try:
            yield
        finally:
            self._context.dense = None
            self._dense.clear()
            if release:
                for weight in weights:
                    weight.release()

    @torch.no_grad()
    def _check(self) -> None:
        """Find products to skip. Raise UnsupportedModel if layers pass more to each other than hidden states."""
        words = torch.tensor([[1, 2, 3]]).remainder(self._network.head.at(None).vocabulary)
        blocks = Batch(inputs=words, targets=words)
        expected = float(self._network.block_sums(blocks, ()))
        some = _MicroBatch(blocks=blocks, parts=torch.tensor([0]))
        hidden, some.calls = self._network.layer_calls(blocks)
        some.states = [hidden]
        for number in range(self._stack.count):
            with self._layer(number):
                self._skip_last_product(number, some.states[-1], some.calls[number])
                self._run(some, number)
        loss = float(self._output(some, torch.ones(1, dtype=torch.float64)).sum())
        # Where the model itself overflows on these words, as in fp16, a step will tell.
        if isfinite(expected) and not abs(loss - expected) <= _TOLERANCE * abs(expected):
            raise UnsupportedModel(
                "The model's layers pass more to each other than hidden states. Use training.method = mezo."
            )

    def _skip_last_product(self, number: int, state: torch.Tensor, call: LayerCall) -> None:
        """Skip the layer's last product in the backward pass if no gradient depends on its output.

        That is so in most layers, which only add it to the residual stream.
        """
        called: list[StreamedLinear] = []
        linears = [linear for path, linear in self._network.linears.items() if self._stack.number_of(path) == number]
        hooks = [linear.register_forward_hook(lambda linear, *_: called.append(linear)) for linear in linears]
        self._stack.run(number, state, call)
        for hook in hooks:
            hook.remove()
        error = torch.randn(state.shape, generator=torch.Generator().manual_seed(0)).to(state.dtype)
        last = called[-1]
        last.output_needed = True
        (expected,) = self._layer_vjp(number, state, call, error)
        last.output_needed = False
        (found,) = self._layer_vjp(number, state, call, error)
        last.output_needed = not torch.equal(found, expected)


def _vjp(output: torch.Tensor, inputs: Sequence[torch.Tensor], error: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients of <output, error>. Passing `error` as grad_outputs would import sympy (38 MB)."""
    with torch.enable_grad():
        product = (output * error).sum()
    return torch.autograd.grad(product, inputs)
