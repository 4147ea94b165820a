"""Small real pieces of learning that several tests share."""

import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, pack
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.noise import rademacher

TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")


def some_adapter(model: LanguageModel, *, rank: int = 4, alpha: float = 4.0, size: float = 0.1) -> Adapter:
    """An adapter that changes something: A and B of random signs."""
    a, b = {}, {}
    for number, (path, linear) in enumerate(model.linears.items()):
        if path.rpartition(".")[2] in TARGETS:
            a[path] = rademacher(1, 1, number, (rank, linear.base.in_features)) * 0.2
            b[path] = rademacher(1, 2, number, (linear.base.out_features, rank)) * size
    return Adapter(base=model.native.manifest.name, alpha=alpha, a=a, b=b)


def some_blocks(count: int = 12, length: int = 16) -> Blocks:
    """Blocks of a text with a pattern to learn."""
    pattern = [3 + (7 * i) % 40 for i in range(count * length // 2)]
    return pack([pattern, pattern], length=length, separator=0)[slice(0, count)]


def equal(a: Adapter, b: Adapter) -> bool:
    """Whether two adapters' tensors are the same, bit for bit."""
    ours, theirs = {**a.a, **b_named(a)}, {**b.a, **b_named(b)}
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def b_named(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The trained factors under names that do not collide with the frozen ones."""
    return {f"{path}.b": tensor for path, tensor in adapter.b.items()}
