"""Blocks that are told apart by their first token."""

import torch

from pocketllm.engine.data.batches import Batch, Batches


def numbered_blocks(*counts: int) -> Batches:
    """Batches of one, two, ... positions whose blocks are told apart by their first token."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    rows = [
        torch.arange(start, start + count)[:, None].repeat(1, i + 1)
        for i, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]
    return tuple(Batch(inputs=row, targets=row) for row in rows)
