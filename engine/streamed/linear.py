"""A drop-in replacement for nn.Linear, whose weight is dense only while it runs, with an optional LoRA branch.

    y  = x W^T + (x A^T) (s B)^T
    dx = dy W + (dy s B) A,    dA = (dy s B)^T x,    d(s B) = dy^T (x A^T)

with A (rank, in), B (out, rank) and the scaling s of the branch (LoRA, arXiv 2106.09685).
"""

from typing import Any

import torch
from torch import nn

from pocketllm.engine.streamed.context import ForwardContext
from pocketllm.engine.streamed.weights import Weight


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
        """x: (batch, ..., in) -> (batch, ..., out). Differentiable, with a graph to x and to the branch's leaves."""
        if x.requires_grad and torch.is_grad_enabled():
            a, b = (None, None) if self.lora is None else self.lora.leaves or (None, None)
            graphed: torch.Tensor = _Differentiable.apply(x.to(self.context.dtype), a, b, self)  # type: ignore[no-untyped-call, unused-ignore]
            return graphed
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


class _Differentiable(torch.autograd.Function):
    """A StreamedLinear with its vector-Jacobian product. The weight is frozen: it has no copy and no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor | None, linear: StreamedLinear
    ) -> torch.Tensor:
        rows = x.reshape(-1, linear.in_features)
        low = None if a is None else rows @ a.t()
        y = linear.product(rows)
        if low is not None and b is not None:
            y.addmm_(low, b.t())
        ctx.linear = linear
        ctx.save_for_backward(rows if a is not None else None, low, a, b)
        return y.view(*x.shape[:-1], linear.out_features)

    @staticmethod
    def backward(ctx: Any, error: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        linear: StreamedLinear = ctx.linear
        dy = error.reshape(-1, linear.out_features)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = linear.product_with_transposed(dy)
        grad_a = grad_b = None
        if a is not None:
            dlow = dy @ b
            grad_a, grad_b = dlow.t() @ rows, dy.t() @ low
            if dx is not None:
                dx.addmm_(dlow, a)
        return None if dx is None else dx.view(*error.shape[:-1], linear.in_features), grad_a, grad_b, None
