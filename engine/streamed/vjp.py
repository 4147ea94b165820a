"""The vector-Jacobian product of a linear map on a streamed weight, for torch's autograd.

The weight is frozen: there is no copy of it and no gradient with its shape.

    y  = x W^T + (x A^T) (s B)^T
    dx = dy W + (dy s B) A,    dA = (dy s B)^T x,    d(s B) = dy^T (x A^T)

with A (rank, in), B (out, rank) and the scaling s of an adapter (LoRA, arXiv 2106.09685), if there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pocketllm.engine.streamed.modules import StreamedLinear


def differentiable_linear(linear: StreamedLinear, x: torch.Tensor) -> torch.Tensor:
    """x: (batch, ..., in) -> (batch, ..., out), with a graph to x and to the leaves of the LoRA branch."""
    a, b = (None, None) if linear.lora is None else linear.lora.leaves or (None, None)
    y: torch.Tensor = _Linear.apply(x.to(linear.context.dtype), a, b, linear)  # type: ignore[no-untyped-call, unused-ignore]
    return y


class _Linear(torch.autograd.Function):
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
        da = db = None
        if a is not None:
            at_low = dy @ b
            da, db = at_low.t() @ rows, dy.t() @ low
            if dx is not None:
                dx.addmm_(at_low, a)
        return None if dx is None else dx.view(*error.shape[:-1], linear.in_features), da, db, None
