"""The peer with the least memory: transformers' model, its frozen linear maps in int8, as people do it by hand.

Checkpointing, the loss in chunks and factors beside the maps are bench.learn's. Libraries do the same and cost more of
themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.common.shapes import WEIGHTS_DEVIATION, config_of

_LARGEST = 127


class _Product(torch.autograd.Function):
    """x W^T for W in int8 with a scale a row, dense only while it multiplies."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """(..., columns) to (..., rows)."""
        ctx.weight, ctx.scale = weight, scale
        return x @ (weight.to(x.dtype) * scale).t()

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient of x; the weight is frozen."""
        return errors[0] @ (ctx.weight.to(errors[0].dtype) * ctx.scale), None, None


class Int8Linear(torch.nn.Linear):
    """A frozen linear map."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight: (rows, columns) int8; scale: (rows, 1), by which it is multiplied."""
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.scale, self.weight = scale, torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear's."""
        found: torch.Tensor = _Product.apply(input, self.weight, self.scale)  # type: ignore[no-untyped-call, unused-ignore]
        return found if self.bias is None else found + self.bias


def _random_map(like: torch.nn.Linear) -> Int8Linear:
    weight = torch.randint(-_LARGEST, _LARGEST + 1, like.weight.shape, dtype=torch.int8)
    scale = torch.full((like.out_features, 1), WEIGHTS_DEVIATION * 3**0.5 / _LARGEST, dtype=like.weight.dtype)
    return Int8Linear(weight, scale, torch.zeros(like.out_features, dtype=like.weight.dtype))


def build(shape: str) -> Any:
    """transformers' causal model of a shape with random weights, made map by map: never all of them in bf16."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            if module is not head:
                parent, _, own = path.rpartition(".")
                setattr(model.get_submodule(parent), own, _random_map(module))
            continue
        for name, meta in list(module.named_parameters(recurse=False)):
            made = torch.empty(meta.shape, dtype=meta.dtype).normal_(0.0, WEIGHTS_DEVIATION)
            module.register_parameter(name, torch.nn.Parameter(made, requires_grad=False))
    head.weight = model.get_input_embeddings().weight  # shared, as in the published models
    return model
