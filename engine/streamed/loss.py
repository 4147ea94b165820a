"""Cross-entropy in chunks of the vocabulary, only where there is a target: the full logits never exist.

At batch 64 x 128 tokens SmolLM2's logits would be 1.6 GB in fp32, many times the model. A chunk is a few MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import e, log2
from typing import TYPE_CHECKING

import torch

from pocketllm.engine.data.batches import next_power_of_two

if TYPE_CHECKING:
    from pocketllm.engine.streamed.head import HeadAt

#: Default size of a chunk of logits in fp32 (or float64), and of the head's rows for it, in bytes.
CHUNK_BYTES = 8 * 2**20
#: Positions are rounded up to a multiple of this, fewer ones to a power of two.
_FEW_ROWS = 64
#: The most positions whose logits are computed at once.
CHUNK_ROWS = 2048
#: Fewer columns than this would make the matrix products inefficient, whatever the limit says.
_MIN_COLUMNS = 64


def token_losses(
    hidden: torch.Tensor, head: HeadAt, targets: torch.Tensor, label_ids: Sequence[int] | None = None
) -> torch.Tensor:
    """Each position's loss in nats.

    hidden: (n, width), the head's input; targets: (n,) int64 token ids; label_ids: the tokens of the softmax, if it is
    not over all of them. Returns (n,) fp32, or float64 for a float64 `hidden`. Reads the head's rows once, in order; of
    labels only theirs.
    """
    count = len(hidden)
    hidden, head, targets = over_labels(hidden, head, targets, label_ids)
    hidden, targets = rounded(hidden), rounded(targets)
    exact = target_logits(hidden, head, targets, CHUNK_BYTES)
    total = torch.full_like(exact, -torch.inf)  # log-sum-exp of the logits seen so far
    columns, rows = columns_at_once(hidden, head, CHUNK_BYTES), min(len(hidden), CHUNK_ROWS)
    product = torch.empty(rows * columns, dtype=hidden.dtype)
    accurate = product if hidden.dtype == exact.dtype else torch.empty_like(product, dtype=exact.dtype)
    for start in range(0, head.vocabulary if len(hidden) else 0, columns):
        stop = min(start + columns, head.vocabulary)
        weights = head.rows(start, stop).t()
        for first in range(0, len(hidden), CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            shape = (len(targets[part]), stop - start)
            logits = torch.mm(hidden[part], weights, out=_front(product, shape))
            if accurate is not product:
                logits = _front(accurate, shape).copy_(logits)
            if head.bias is not None:
                logits += head.bias[start:stop]
            # The same value in the sum as is subtracted from it: otherwise a loss could be below zero.
            here = ((targets[part] >= start) & (targets[part] < stop)).nonzero()[:, 0]
            logits[here, targets[part][here] - start] = exact[part][here]
            torch.logaddexp(total[part], log_sum_exp_(logits), out=total[part])
    return (total - exact)[:count]


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """(n, ...) -> (m, ...): the same with zeros, for few different shapes of products: see Batch.rounded."""
    count = len(rows)
    size = next_power_of_two(count) if count < _FEW_ROWS else -(-count // _FEW_ROWS) * _FEW_ROWS
    return rows if count in (0, size) else torch.cat((rows, rows.new_zeros(size - count, *rows.shape[1:])))


def over_labels(
    hidden: torch.Tensor, head: HeadAt, targets: torch.Tensor, label_ids: Sequence[int] | None
) -> tuple[torch.Tensor, HeadAt, torch.Tensor]:
    """These arguments for a vocabulary of the labels only, each target being one of them; unchanged without labels.

    In fp32 at least: over a few tokens the rounding errors of bf16 would not average out.
    """
    if label_ids is None:
        return hidden, head, targets
    tokens, dtype = torch.tensor(label_ids), accurate(hidden)
    return hidden.to(dtype), head.of_labels(tokens, dtype), (targets[:, None] == tokens).int().argmax(1)


def target_logits(hidden: torch.Tensor, head: HeadAt, targets: torch.Tensor, chunk_bytes: int) -> torch.Tensor:
    """(n,): the targets' logits, computed in fp32.

    A bf16 logit has three digits. MeZO uses the difference of two losses that agree in more digits than that, and most
    of it is in this logit; in the log-sum-exp the rounding errors of many tokens average out.
    """
    dtype = accurate(hidden)
    logits = torch.empty(len(hidden), dtype=dtype)
    size = max(1, chunk_bytes // (dtype.itemsize * hidden.shape[1]))
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        torch.linalg.vecdot(hidden[part].to(dtype), head.gather(targets[part]).to(dtype), out=logits[part])
    if head.bias is not None:
        logits += head.bias[targets]
    return logits


def columns_at_once(hidden: torch.Tensor, head: HeadAt, chunk_bytes: int) -> int:
    """The number of tokens in a chunk of logits."""
    bytes_of_logits = accurate(hidden).itemsize * min(max(len(hidden), 1), CHUNK_ROWS)
    # With few positions, the head's dense rows take more memory than the logits.
    bytes_of_weights = hidden.dtype.itemsize * hidden.shape[1]
    limit = chunk_bytes // max(bytes_of_logits, bytes_of_weights)
    return min(max(limit, _MIN_COLUMNS), head.vocabulary)


def accurate(hidden: torch.Tensor) -> torch.dtype:
    """The dtype of the losses: fp32 at least."""
    return torch.promote_types(hidden.dtype, torch.float32)


def _front(buffer: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A contiguous matrix in the first elements of a flat buffer."""
    return buffer[: shape[0] * shape[1]].view(shape)


def log_sum_exp_(logits: torch.Tensor) -> torch.Tensor:
    """(n, columns) -> (n,). Overwrites the logits: a chunk is as large as the processor's cache."""
    largest = logits.amax(1, keepdim=True)
    # exp2 takes a quarter of the time of `exp`, where torch calls an accurate vector library for that.
    return logits.sub_(largest).mul_(log2(e)).exp2_().sum(1).log_().add_(largest[:, 0])
