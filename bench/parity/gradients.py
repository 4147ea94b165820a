"""Exact gradients as the worker takes them, all activations kept, against transformers' autograd in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.common import peers
from pocketllm.backprop.gradients import LayerwiseGradients, PassSize, Sums
from pocketllm.backprop.method import fresh_adapter
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel

_RANK, _SEED = 8, 0
#: Of B, which is zero in a fresh adapter and would leave A without a gradient.
_DEVIATION = 2e-3


def worst_cosine(folder: Path, inputs: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> float:
    """The least cosine, over A and B of all maps, between ours in this compute dtype and autograd's in fp32.

    inputs, targets: (blocks, tokens) int64.
    """
    blocks = Batch(inputs=inputs, targets=targets)
    model = LanguageModel(open_model_folder(folder), dtype=dtype, release_pages=True)
    adapter = fresh_adapter(model, rank=_RANK, seed=_SEED)
    generator = torch.Generator().manual_seed(_SEED)
    for b in adapter.b.values():
        b.normal_(0, _DEVIATION, generator=generator)
    model.set_parameters(adapter)
    size = PassSize(stored=inputs.numel(), micro_batch=inputs.numel(), kept=model.stack.count)
    found: Sums = {}
    LayerwiseGradients(model, adapter, size)([(blocks, 1.0)], found)
    expected = _autograd(folder, adapter, blocks)
    pairs = [
        pair for path in expected for pair in zip((found[f"a.{path}"], found[f"b.{path}"]), expected[path], strict=True)
    ]
    return min(float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0)) for one, other in pairs)


def _autograd(folder: Path, adapter: Adapter, blocks: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    model = peers.build(folder).float().eval()
    model.requires_grad_(False)
    factors = []
    for path in adapter.a:
        a, b = (factor[path].clone().requires_grad_() for factor in (adapter.a, adapter.b))
        factors += [a, b]
        model.get_submodule(path).register_forward_hook(_branch(a, b, adapter.scaling))
    with torch.enable_grad():
        logits = model(input_ids=blocks.inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), blocks.targets.flatten())
    gradients = torch.autograd.grad(loss, factors)
    return {path: (gradients[2 * i], gradients[2 * i + 1]) for i, path in enumerate(adapter.a)}


def _branch(a: torch.Tensor, b: torch.Tensor, scaling: float) -> Any:
    def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output + inputs[0] @ a.t() @ b.t() * scaling

    return hook
