"""Drop-in replacements for nn.Embedding, norms and position tables, whose weights are dense only while they run.

transformers' own code calls them. A forward pass holds one dense weight at a time, so memory does not grow with depth.
MeZO's perturbations share a pass: the batch is split evenly among them, and part i is computed at
theta + distance_i z_i.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pocketllm.engine.streamed.context import ForwardContext
from pocketllm.engine.streamed.weights import Weight


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
