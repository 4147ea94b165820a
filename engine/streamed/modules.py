"""Drop-in replacements for nn.Linear, nn.Embedding and norms, whose weights are dense only while they run.

transformers' own code calls them. A forward pass holds one dense weight at a time, so memory does not grow with depth.
MeZO's perturbations share a pass: the batch has an equal part for each of them, and part i goes through
theta + distance_i z_i.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from pocketllm.engine.params.perturbation import Perturbation, Z
from pocketllm.engine.streamed.fused_linear import FusedLinear
from pocketllm.engine.streamed.vjp import differentiable_linear
from pocketllm.engine.streamed.weights import DenseWeights, Scratch, Weight

#: Bytes of a weight that are made dense at a time: they stay in the processor's cache. But products of fewer rows
#: than these take longer.
CHUNK_BYTES, MIN_ROWS = 4 * 2**20, 512


@dataclass
class ForwardContext:
    """What a forward pass uses besides the weights; all modules of a model share one."""

    dtype: torch.dtype  #: that the layers compute in
    points: Sequence[Perturbation] = ()  #: the batch's parts go through these; empty: theta itself
    rows: int = 0  #: of the batch, all parts together; used only with perturbations
    release: bool = False  #: give a weight's pages back after use
    scratch: Scratch = field(default_factory=Scratch)
    moved: list[Scratch] = field(default_factory=list)  #: for the same weight at several points
    joined: FusedLinear = field(default_factory=FusedLinear)
    #: The dense weights of the current layer, kept for all micro-batches; None: made dense at each use, in chunks.
    dense: DenseWeights | None = None

    def groups(self) -> Iterator[tuple[Z, list[Perturbation]]]:
        """The points by direction, so that each z is drawn once."""
        for direction, points in groupby(self.points, key=lambda point: point.direction):
            yield direction, list(points)


class StreamedWeight:
    """A weight, and its number among the trained tensors; None where it is frozen."""

    def __init__(self, weight: Weight, context: ForwardContext) -> None:
        self.weight, self._context = weight, context
        self.number: int | None = None

    @property
    def parts(self) -> int:
        """The number of values: one for the whole batch, or one for each perturbation."""
        return len(self._context.points) if self.moved else 1

    @property
    def moved(self) -> bool:
        """Whether perturbations change it."""
        return self.number is not None and len(self._context.points) > 0

    @property
    def as_kept(self) -> torch.Tensor | None:
        """The stored tensor, where it can be multiplied without a copy; else None."""
        # Asked for each map and token: without a detour.
        parts = self.weight.parts
        kept = len(parts) == 1 and parts[""].dtype == self._context.dtype
        return parts[""] if kept and (self.number is None or not self._context.points) else None

    def chunks(self) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        """Dense rows in chunks: the slice, and its value for each part of the batch. Valid until the next chunk."""
        count = self.weight.shape[0]
        if self._context.dense is not None and not self.moved and self.as_kept is None:
            yield slice(0, count), [self._context.dense.of(self.weight, self._context.dtype)]
            return
        at_once = self._rows_at_once()
        for start in range(0, count, at_once):
            rows = slice(start, min(start + at_once, count))
            dense = self.weight.rows(rows.start, rows.stop, self._context.dtype, self._context.scratch)
            yield rows, self._at_points(dense, start)
        if self._context.release and self.weight.packed:  # of which a copy was used
            self.weight.release()

    def whole(self, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """The whole of a small weight for each part of the batch, in `dtype` or the layers' dtype."""
        dense = self.weight.dense(dtype or self._context.dtype, Scratch())
        if not self.moved:
            return [dense]
        values = [torch.empty_like(dense) for _ in self._context.points]
        for start in range(0, len(dense), MIN_ROWS):  # a table of positions is not that small
            rows = slice(start, start + MIN_ROWS)
            for value, point in zip(values, self._context.points, strict=True):
                value[rows] = self.rows_at(dense[rows], start, point)
        return values

    def rows_at(self, rows: torch.Tensor, start: int, point: Perturbation) -> torch.Tensor:
        """These dense rows of the weight, from row `start` on, moved to a point, as a new tensor."""
        if self.number is None:
            return rows
        z = point.direction.rows(self.number, self.weight.shape, start, start + len(rows), rows.dtype)
        return torch.add(rows, z, alpha=point.distance)

    def gathered_at(self, rows: torch.Tensor, ids: torch.Tensor, point: Perturbation) -> torch.Tensor:
        """The dense rows with these numbers, moved to a point, as a new tensor."""
        if self.number is None:
            return rows
        z = point.direction.gather(self.number, self.weight.shape, ids, rows.dtype)
        return torch.add(rows, z, alpha=point.distance)

    def _rows_at_once(self) -> int:
        """All where the weight is used as it is kept; else so many that what is made stays in the cache."""
        if self.as_kept is not None:
            return self.weight.shape[0]
        return max(MIN_ROWS, CHUNK_BYTES // (self._context.dtype.itemsize * self.weight.shape[1]))

    def _at_points(self, dense: torch.Tensor, start: int) -> list[torch.Tensor]:
        if self.number is None or not self._context.points:
            return [dense]
        scratches = self._context.moved
        scratches.extend(Scratch() for _ in range(len(self._context.points) - len(scratches)))
        free = iter(scratches)
        values = []
        for direction, points in self._context.groups():
            z = direction.rows(self.number, self.weight.shape, start, start + len(dense), dense.dtype)
            for point in points:
                values.append(torch.add(dense, z, alpha=point.distance, out=next(free).take(dense.shape, dense.dtype)))
        return values


class LoRABranch:
    """LoRA's branch of a linear map: scaling * B A x, with B at each perturbation (arXiv 2106.09685)."""

    def __init__(
        self, context: ForwardContext, *, number: int, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> None:
        """a (rank, in) and b (out, rank), fp32; b is read anew each time, since training changes it in place."""
        self._context, self._number, self.scaling = context, number, scaling
        self.a, self.b = a, b
        #: A and scaling * B in the dtype that the layers compute in, while gradients are taken with respect to them.
        self.leaves: tuple[torch.Tensor, torch.Tensor] | None = None

    def add_to(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """y (rows, out) += the branch's output for x (rows, in), in place.

        At theta + distance z this is [A x, distance A x] [B, z]^T: one product for both sides of a probe, in which
        z keeps its exact signs. B + distance z would lose them to the rounding of a large B.
        """
        if len(x) == 1 and not self._context.points:
            # A new token. In half precision products this small spend eight times as long on starting threads.
            dtype = torch.promote_types(x.dtype, self.a.dtype)
            y.add_(x.to(dtype) @ self.a.t().to(dtype) @ self.b.t().to(dtype), alpha=self.scaling)
            return
        low = x @ self.a.t().to(x.dtype)
        b = self.b.to(y.dtype)
        if not self._context.points:
            y.addmm_(low, b.t(), alpha=self.scaling)
            return
        rows = len(x) // len(self._context.points)  # of a part
        first = 0
        for direction, points in self._context.groups():
            group = slice(first, first + rows * len(points))
            distances = low.new_tensor([point.distance for point in points]).view(-1, 1, 1)
            moved = low[group].view(len(points), rows, -1) * distances
            both = torch.cat((low[group], moved.view(rows * len(points), -1)), 1)
            z = direction.of(self._number, b.shape, b.dtype)
            y[group].addmm_(both, torch.cat((b, z), 1).t(), alpha=self.scaling)
            first = group.stop

    def extend(self, x: torch.Tensor) -> torch.Tensor:
        """(n, in) -> (n, in + rank): [x, A x]. The adapted map is one map of it, whose rows `rows_at` extends."""
        return torch.cat((x, x @ self.a.t().to(x.dtype)), 1)

    def rows_at(self, point: Perturbation | None, start: int, rows: torch.Tensor, into: Scratch) -> torch.Tensor:
        """(n, in) dense rows of the map from `start` on -> (n, in + rank): [rows, scaling * B], B at the point."""
        stop = start + len(rows)
        return self._beside(rows, self._moved(point, self.b[start:stop], start, stop), into)

    def gathered_at(self, point: Perturbation | None, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The same for the rows with these numbers."""
        b = self.b[ids]
        if point is not None:
            b = b.add(point.direction.gather(self._number, self.b.shape, ids, b.dtype), alpha=point.distance)
        return self._beside(rows, b, Scratch())

    def _moved(self, point: Perturbation | None, b: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if point is None:
            return b
        z = point.direction.rows(self._number, self.b.shape, start, stop, b.dtype)
        return b.add(z, alpha=point.distance)

    def _beside(self, rows: torch.Tensor, b: torch.Tensor, into: Scratch) -> torch.Tensor:
        width, rank = rows.shape[1], b.shape[1]
        both = into.take((len(rows), width + rank), rows.dtype)
        both[:, :width] = rows
        both[:, width:] = b * self.scaling
        return both


class StreamedLinear(nn.Module):
    """nn.Linear on a streamed weight, with an adapter's branch beside it."""

    def __init__(self, context: ForwardContext, weight: Weight, bias: Weight | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.context = context
        self.weights = StreamedWeight(weight, context)
        self.biases = None if bias is None else StreamedWeight(bias, context)
        self.lora: LoRABranch | None = None
        #: False where no gradient depends on the output, so that a pass with a graph leaves it out (vjp.py).
        self.output_needed = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, ..., in) -> (batch, ..., out). Differentiable where a graph is made (vjp.py)."""
        if x.requires_grad and torch.is_grad_enabled():
            return differentiable_linear(self, x)
        if x.numel() == self.in_features and (weight := self.weights.as_kept) is not None:
            return self._of_token(x.to(self.context.dtype), weight)
        rows = x.reshape(-1, self.in_features).to(self.context.dtype)
        y = self.product(rows)
        if self.lora is not None:
            self.lora.add_to(y, rows)
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, in) -> (n, out): W x + bias, each part of the rows at its point."""
        y = rows.new_empty(len(rows), self.out_features)
        parts = self.weights.parts
        xs, ys = rows.chunk(parts), y.chunk(parts)
        biases = [None] * parts if self.biases is None else _each(self.biases, parts)
        for columns, values in self.weights.chunks():
            for part, into, weight, bias in zip(xs, ys, values, biases, strict=True):
                if bias is None:
                    torch.mm(part, weight.t(), out=into[:, columns])
                else:
                    torch.addmm(bias[columns], part, weight.t(), out=into[:, columns])
        return y

    def product_with_transposed(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, out) -> (n, in): W^T y, at theta itself."""
        chunks = self.weights.chunks()
        columns, (weight, *_) = next(chunks)
        x = rows[:, columns] @ weight
        for columns, (weight, *_) in chunks:
            x.addmm_(rows[:, columns], weight)
        return x

    def _of_token(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Of one token the whole costs little more than its product: all else that `forward` does would show."""
        if self.biases is None:
            y = self.context.joined.product(x, self.weights.weight, weight)
        else:
            y = nn.functional.linear(x, weight, self.biases.whole()[0])
        if self.lora is not None:
            self.lora.add_to(y.view(1, -1), x.reshape(1, -1))
        return y


def _each(trained: StreamedWeight, parts: int, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """A small weight's value for each of so many parts, in `dtype` or that of the layers."""
    values = trained.whole(dtype)
    return values if len(values) == parts else values * parts


class StreamedEmbedding(nn.Module):
    """A word embedding on a streamed weight: only the rows of the words at hand are made dense.

    The module that it replaces keeps its own arithmetic (Gemma scales its output): it is handed a small table.
    """

    def __init__(self, context: ForwardContext, weight: Weight, inner: nn.Embedding) -> None:
        super().__init__()
        self._context, self._inner = context, inner
        self._inner.padding_idx = None  # matters to gradients alone, and the small table may end before it
        self.weights = StreamedWeight(weight, context)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) -> (batch, tokens, width)."""
        words, places = torch.unique(ids, return_inverse=True)
        table = self.weights.weight.gather(words, self._context.dtype, release=self._context.release)
        if self.weights.number is not None and self._context.points:
            table = torch.cat([self.weights.gathered_at(table, words, point) for point in self._context.points])
            parts = places.chunk(len(self._context.points))
            places = torch.cat([part + i * len(words) for i, part in enumerate(parts)])
        self._inner._parameters["weight"] = table  # type: ignore[assignment]
        try:
            output: torch.Tensor = self._inner(places)
        finally:
            self._inner._parameters["weight"] = None
        return output


def perturbed_forward(
    module: nn.Module, trained: dict[str, StreamedWeight], context: ForwardContext
) -> Callable[..., torch.Tensor]:
    """A `forward` for a small module (a norm, a position table): each part of the batch through its own weights.

    At points a norm computes in fp32 at least, and is rounded at the end: in bf16 a gain of 1 plus or minus 1e-3 is 1,
    and so is a number of 1 times such a gain.
    """
    inner = module.forward
    is_norm = all(len(weight.weight.shape) == 1 for weight in trained.values())
    dtype = torch.promote_types(context.dtype, torch.float32) if is_norm else None

    def forward(*arguments: Any, **options: Any) -> torch.Tensor:
        if not any(weight.moved for weight in trained.values()):
            for name, weight in trained.items():
                kept = weight.as_kept
                module._parameters[name] = weight.whole()[0] if kept is None else kept  # type: ignore[assignment]
            result: torch.Tensor = inner(*arguments, **options)
            return result
        parts = len(context.points)
        values = {name: iter(_each(weight, parts, dtype)) for name, weight in trained.items()}
        outputs: list[torch.Tensor] = []
        for i in range(parts):
            module._parameters.update({name: next(value) for name, value in values.items()})  # type: ignore[misc]
            chosen = [_part(value, i, parts, dtype) for value in arguments]
            output = inner(*chosen, **{name: _part(value, i, parts, dtype) for name, value in options.items()})
            outputs.append(output.to(context.dtype))
        if len(outputs[0]) == 1:  # one row for the whole batch, as positions are in some models
            outputs = [output.expand(context.rows // parts, *output.shape[1:]) for output in outputs]
        return torch.cat(outputs)

    return forward


def _part(value: Any, i: int, parts: int, dtype: torch.dtype | None) -> Any:
    """The i-th part of a tensor of the whole batch; anything else, such as a row for all of it, as it is.

    Of floats in `dtype`, unless it is None.
    """
    if not isinstance(value, torch.Tensor):
        return value
    part = value if value.dim() == 0 or len(value) == 1 else value.chunk(parts)[i]
    return part.to(dtype) if dtype is not None and part.is_floating_point() else part
