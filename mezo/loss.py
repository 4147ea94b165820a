"""Cross-entropy where there is a target, in chunks: the whole logits tensor never exists.

At batch 64 x 128 tokens SmolLM2's logits would be 1.6 GB in fp32, many times the model. A chunk is a few MB.
"""

import torch
import torch.nn.functional as F

#: Target of a position that does not count (padding).
NO_TARGET = -100

#: The most bytes that one chunk of fp32 logits may take.
CHUNK_BYTES = 16 * 2**20


def block_losses(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each block's summed loss in nats.

    hidden: (blocks, tokens, width), the last layer's output; head: (vocabulary, width), the output embedding;
    targets: (blocks, tokens) int64, NO_TARGET where nothing is predicted. Returns (blocks,) fp32.
    """
    counted = targets != NO_TARGET
    owner = counted.nonzero()[:, 0]
    rows, wanted = hidden[counted], targets[counted]
    losses = torch.zeros(len(targets), dtype=torch.float32)
    chunk = max(1, CHUNK_BYTES // (4 * head.shape[0]))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        logits = (rows[part] @ head.t()).float()
        losses.index_add_(0, owner[part], F.cross_entropy(logits, wanted[part], reduction="none"))
    return losses
