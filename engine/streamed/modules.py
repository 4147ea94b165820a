"""Drop-in replacements for nn.Linear, nn.Embedding and norms, whose weights are dense only while they run.

transformers' own code calls them. A forward pass holds one dense weight at a time, so memory does not grow with depth.
MeZO's perturbations share a pass: the batch is split evenly among them, and part i is computed at
theta + distance_i z_i.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from pocketllm.engine.noise import Direction, Perturbation
from pocketllm.engine.streamed.vjp import differentiable_linear
from pocketllm.engine.streamed.weights import DenseWeights, Scratch, Weight


@dataclass
class ForwardContext:
    """The state of a forward pass, shared by all modules of a model."""

    dtype: torch.dtype  #: the compute dtype of the layers
    perturbations: Sequence[Perturbation] = ()  #: one for each part of the batch; empty: theta itself
    rows: int = 0  #: blocks in the batch, over all parts; used only with perturbations
    release: bool = False  #: release a weight's pages after use
    decoding: bool = False  #: a few tokens behind a cache: see decoding.py
    scratch: Scratch = field(default_factory=Scratch)
    perturbed_scratch: list[Scratch] = field(default_factory=list)  #: one weight at each perturbation
    #: The current layer's dense weights, shared by all micro-batches; None: each use makes its own, in chunks.
    dense: DenseWeights | None = None

    def groups(self) -> Iterator[tuple[Direction, list[Perturbation]]]:
        """The perturbations grouped by direction, so that each z is generated once."""
        for direction, perturbations in groupby(self.perturbations, key=lambda perturbation: perturbation.direction):
            yield direction, list(perturbations)


class LoRABranch:
    """The LoRA branch of a linear map: scaling * B A x (arXiv 2106.09685), with B perturbed for MeZO."""

    def __init__(
        self, context: ForwardContext, *, number: int, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> None:
        """a: (rank, in), b: (out, rank), both fp32. Training changes b in place."""
        self._context, self._number, self.scaling = context, number, scaling
        self.a, self.b = a, b
        #: A and scaling * B in the compute dtype, the leaves of the graph while gradients are taken.
        self.leaves: tuple[torch.Tensor, torch.Tensor] | None = None

    def add_to(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """y (rows, out) += the branch's output for x (rows, in), in place.

        At theta + distance z it is [A x, distance A x] [B, z]^T. One product serves both sides of a probe, and z keeps
        its exact signs, which the rounding of B + distance z could lose.
        """
        low = x @ self.a.t().to(x.dtype)
        b = self.b.to(y.dtype)
        if not self._context.perturbations:
            y.addmm_(low, b.t(), alpha=self.scaling)
            return
        rows = len(x) // len(self._context.perturbations)  # in each part
        first = 0
        for direction, perturbations in self._context.groups():
            group = slice(first, first + rows * len(perturbations))
            distances = low.new_tensor([perturbation.distance for perturbation in perturbations]).view(-1, 1, 1)
            scaled = low[group].view(len(perturbations), rows, -1) * distances
            both = torch.cat((low[group], scaled.view(rows * len(perturbations), -1)), 1)
            z = direction.of(self._number, b.shape, b.dtype)
            y[group].addmm_(both, torch.cat((b, z), 1).t(), alpha=self.scaling)
            first = group.stop


class StreamedLinear(nn.Module):
    """nn.Linear on a streamed weight, with an optional LoRA branch."""

    def __init__(self, context: ForwardContext, weight: Weight, bias: Weight | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.context = context
        self.weight, self.bias = weight, bias
        self.lora: LoRABranch | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, ..., in) -> (batch, ..., out). Differentiable (vjp.py)."""
        if x.requires_grad and torch.is_grad_enabled():
            return differentiable_linear(self, x)
        rows = x.reshape(-1, self.in_features).to(self.context.dtype)
        y = self.product(rows)
        if self.lora is not None:
            self.lora.add_to(y, rows)
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, rows: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """(n, in) -> (n, out), `into` if that is given: W x + bias, each part of the rows at its perturbation."""
        y = rows.new_empty(len(rows), self.out_features) if into is None else into
        parts = len(self.context.perturbations) if self.weight.is_perturbed(self.context) else 1
        xs, ys = rows.chunk(parts), y.chunk(parts)
        biases = [None] * parts if self.bias is None else self.bias.whole(self.context, parts)
        for columns, values in self.weight.chunks(self.context):
            for part, into, weight, bias in zip(xs, ys, values, biases, strict=True):
                if bias is None:
                    torch.mm(part, weight.t(), out=into[:, columns])
                else:
                    torch.addmm(bias[columns], part, weight.t(), out=into[:, columns])
        return y

    def product_with_transposed(self, rows: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """(n, out) -> (n, in): W^T y, unperturbed; added to `into` if that is given."""
        x = into
        for columns, (weight, *_) in self.weight.chunks(self.context):
            x = rows[:, columns] @ weight if x is None else x.addmm_(rows[:, columns], weight)
        assert x is not None, "a weight has rows"
        return x


class StreamedEmbedding(nn.Module):
    """nn.Embedding on a streamed weight: only the rows of the tokens in the batch are made dense.

    The replaced module runs on that small table, so its own arithmetic (Gemma scales its output) still applies.
    """

    def __init__(self, context: ForwardContext, weight: Weight, inner: nn.Embedding) -> None:
        super().__init__()
        self._context, self._inner = context, inner
        self._inner.padding_idx = None  # only gradients need it, and the small table may have fewer rows
        self.weight = weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) -> (batch, tokens, width)."""
        tokens, places = torch.unique(ids, return_inverse=True)
        table = self.weight.gather(tokens, self._context.dtype, release=self._context.release)
        if self.weight.is_perturbed(self._context):
            perturbations = self._context.perturbations
            table = torch.cat([self.weight.at(perturbation, table, tokens) for perturbation in perturbations])
            parts = places.chunk(len(perturbations))
            places = torch.cat([part + i * len(tokens) for i, part in enumerate(parts)])
        self._inner._parameters["weight"] = table  # type: ignore[assignment]
        try:
            output: torch.Tensor = self._inner(places)
        finally:
            self._inner._parameters["weight"] = None
        return output


def perturbed_forward(
    module: nn.Module, trained: dict[str, Weight], context: ForwardContext
) -> Callable[..., torch.Tensor]:
    """A `forward` for a norm or position table that runs each part of the batch with its perturbed weights.

    Perturbed norms compute in fp32 and round their output: in bf16 a gain of 1 +- 1e-3 rounds to 1.
    """
    inner = module.forward
    is_norm = all(len(weight.shape) == 1 for weight in trained.values())
    dtype = torch.promote_types(context.dtype, torch.float32) if is_norm else None

    def forward(*arguments: Any, **options: Any) -> torch.Tensor:
        if not any(weight.is_perturbed(context) for weight in trained.values()):
            for name, weight in trained.items():
                stored = weight.as_stored(context)
                module._parameters[name] = weight.whole(context, 1)[0] if stored is None else stored  # type: ignore[assignment]
            result: torch.Tensor = inner(*arguments, **options)
            return result
        parts = len(context.perturbations)
        values = {name: iter(weight.whole(context, parts, dtype)) for name, weight in trained.items()}
        outputs: list[torch.Tensor] = []
        for i in range(parts):
            module._parameters.update({name: next(value) for name, value in values.items()})  # type: ignore[misc]
            given = [_part(value, i, parts, dtype) for value in arguments]
            output = inner(*given, **{name: _part(value, i, parts, dtype) for name, value in options.items()})
            outputs.append(output.to(context.dtype))
        if len(outputs[0]) == 1:  # in some models the positions are one row for the whole batch
            outputs = [output.expand(context.rows // parts, *output.shape[1:]) for output in outputs]
        return torch.cat(outputs)

    return forward


def _part(value: Any, i: int, parts: int, dtype: torch.dtype | None) -> Any:
    """Part i of a tensor that has a row for each block, floats in `dtype` unless None; any other value unchanged."""
    if not isinstance(value, torch.Tensor):
        return value
    part = value if value.dim() == 0 or len(value) == 1 else value.chunk(parts)[i]
    return part.to(dtype) if dtype is not None and part.is_floating_point() else part
