"""Cross-entropy where there is a target, in chunks of the vocabulary: the whole logits tensor never exists.

At batch 64 x 128 tokens SmolLM2's logits would be 1.6 GB in fp32, many times the model. A chunk is a few MB.
"""

from collections.abc import Sequence
from math import e, log2
from typing import Protocol

import torch
import torch.nn.functional as F

#: Target of a position that does not count (padding).
IGNORE_INDEX = -100

#: The most bytes that one chunk of logits takes in fp32 (or float64), by default; likewise the head's rows for it.
CHUNK_BYTES = 8 * 2**20
#: The most positions whose logits are computed at once.
CHUNK_ROWS = 2048
#: Fewer columns than this would make the matrix products inefficient, whatever the limit says.
_MIN_COLUMNS = 64


class Head(Protocol):
    """The output embedding, wherever and however its rows are kept."""

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""

    @property
    def bias(self) -> torch.Tensor | None:
        """(vocabulary,), or None."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, width) in the dtype that the model computes in, valid until the next call."""

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """(n, width): the rows of these (n,) tokens."""


def token_losses(
    hidden: torch.Tensor, head: Head, wanted: torch.Tensor, *, chunk_bytes: int = CHUNK_BYTES
) -> torch.Tensor:
    """Each position's loss in nats.

    hidden: (n, width), the last layer's output; wanted: (n,) int64, the token that each shall predict;
    chunk_bytes: the most that a chunk of logits may take.
    Returns (n,) fp32, or float64 for a float64 `hidden`. The head's rows are read once, in order.
    """
    exact = wanted_logits(hidden, head, wanted, chunk_bytes)
    total = torch.full_like(exact, -torch.inf)  # log-sum-exp of the logits seen so far
    columns, rows = columns_at_once(hidden, head, chunk_bytes), min(len(hidden), CHUNK_ROWS)
    product = torch.empty(rows * columns, dtype=hidden.dtype)
    accurate = product if hidden.dtype == exact.dtype else torch.empty_like(product, dtype=exact.dtype)
    for start in range(0, head.vocabulary if len(hidden) else 0, columns):
        stop = min(start + columns, head.vocabulary)
        weights = head.rows(start, stop).t()
        for first in range(0, len(hidden), CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            shape = (len(wanted[part]), stop - start)
            logits = torch.mm(hidden[part], weights, out=_front(product, shape))
            if accurate is not product:
                logits = _front(accurate, shape).copy_(logits)
            if head.bias is not None:
                logits += head.bias[start:stop]
            # The sum has the wanted token's logit as precisely as it is subtracted, so no loss is below zero.
            here = ((wanted[part] >= start) & (wanted[part] < stop)).nonzero()[:, 0]
            logits[here, wanted[part][here] - start] = exact[part][here]
            torch.logaddexp(total[part], log_sum_exp_(logits), out=total[part])
    return total - exact


def label_losses(hidden: torch.Tensor, head: Head, wanted: torch.Tensor, label_ids: Sequence[int]) -> torch.Tensor:
    """Each position's loss in nats when only these tokens can come: a softmax over their rows of the head alone.

    hidden: (n, width); wanted: (n,) int64, each of them one of `label_ids`. Returns (n,) fp32, or float64 for a
    float64 `hidden`.
    """
    dtype, tokens = accurate(hidden), torch.tensor(label_ids)
    logits = hidden.to(dtype) @ head.gather(tokens).to(dtype).t()
    if head.bias is not None:
        logits += head.bias[tokens]
    places = (wanted[:, None] == tokens).int().argmax(1)
    return F.cross_entropy(logits, places, reduction="none")


def wanted_logits(hidden: torch.Tensor, head: Head, wanted: torch.Tensor, chunk_bytes: int) -> torch.Tensor:
    """(n,): the wanted tokens' logits, summed in fp32.

    A bf16 logit has three digits. MeZO learns from the difference of two losses that agree in more than those,
    and most of it is in this one logit; in the log-sum-exp the roundings of many tokens average out.
    """
    dtype = accurate(hidden)
    logits = torch.empty(len(hidden), dtype=dtype)
    size = max(1, chunk_bytes // (dtype.itemsize * hidden.shape[1]))
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        torch.linalg.vecdot(hidden[part].to(dtype), head.gather(wanted[part]).to(dtype), out=logits[part])
    if head.bias is not None:
        logits += head.bias[wanted]
    return logits


def columns_at_once(hidden: torch.Tensor, head: Head, chunk_bytes: int) -> int:
    """How many tokens' logits are computed at once."""
    bytes_of_logits = accurate(hidden).itemsize * min(max(len(hidden), 1), CHUNK_ROWS)
    # With few positions the dense rows of the head are what takes memory: a packed head makes them on the way.
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
    """(n, columns) -> (n,). Overwrites the logits: a chunk is as large as the cache, so there is no room for two."""
    largest = logits.amax(1, keepdim=True)
    # Powers of two: where torch hands `exp` to a library that is made for accuracy, this takes a quarter of the time.
    return logits.sub_(largest).mul_(log2(e)).exp2_().sum(1).log_().add_(largest[:, 0])
