"""The loss and its gradient at a model's output in closed form, without logits that are kept.

For logits l = W h, probabilities p = softmax(l) and the target t the loss is -log p_t, and its gradient

    dL/dh = W^T (p - onehot(t)).

The whole vocabulary's logits exist for a few positions at a time, in the layers' own dtype.
"""

from collections.abc import Sequence
from math import e, log2

import torch

from pocketllm.mezo.loss import Head, accurate, columns_at_once, wanted_logits

#: The most bytes of logits over the whole vocabulary that exist at a time.
LOGIT_BYTES = 24 * 2**20
#: The most bytes of logits in fp32 that are worked on at a time.
CHUNK_BYTES = 4 * 2**20


def output_error(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, *, logit_bytes: int = LOGIT_BYTES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position's loss in nats, (n,) fp32, and its gradient by what the head takes in, (n, width) fp32.

    hidden: (n, width); targets: (n,) int64, the token that each position predicts; logit_bytes: the most that logits
    over the whole vocabulary may take. Fp32 is float64 for a float64 `hidden`.
    """
    losses = torch.empty(len(hidden), dtype=accurate(hidden))
    gradient = torch.zeros(hidden.shape, dtype=losses.dtype)
    size = max(1, logit_bytes // (hidden.itemsize * head.vocabulary))
    buffer = torch.empty(min(size, len(hidden)), head.vocabulary, dtype=hidden.dtype)
    for first in range(0, len(hidden), size):
        part = slice(first, first + size)
        some, tokens = hidden[part], targets[part]
        columns = columns_at_once(some, head, CHUNK_BYTES)
        starts = range(0, head.vocabulary, columns)
        powers = buffer[: len(some)]
        filled = [_fill(powers[:, start : start + columns], some, head, start) for start in starts]
        total = torch.stack([largest + powers_sum.log() for largest, powers_sum in filled]).logsumexp(0)
        losses[part] = total - wanted_logits(some, head, tokens, CHUNK_BYTES)
        for start, (largest, _) in zip(starts, filled, strict=True):
            error = powers[:, start : start + columns].mul_((largest - total).exp_().to(hidden.dtype)[:, None])
            here = ((tokens >= start) & (tokens < start + columns)).nonzero()[:, 0]
            error[here, tokens[here] - start] -= 1
            gradient[part] += error @ head.rows(start, min(start + columns, head.vocabulary))
    # A target's logit is summed more exactly than the others, so a sure word's loss could come out below zero.
    return losses.clamp_(min=0), gradient


def label_error(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, label_ids: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same where only these tokens can come: a softmax over their rows of the head alone."""
    tokens = torch.tensor(label_ids)
    rows = head.gather(tokens).to(accurate(hidden))
    logits = hidden.to(rows.dtype) @ rows.t()
    if head.bias is not None:
        logits += head.bias[tokens]
    places = (targets[:, None] == tokens).int().argmax(1, keepdim=True)
    logs = logits.log_softmax(1)
    error = logs.exp()
    error.scatter_add_(1, places, torch.full_like(places, -1, dtype=error.dtype))
    return -logs.gather(1, places)[:, 0], error @ rows


def _fill(powers: torch.Tensor, hidden: torch.Tensor, head: Head, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill in exp(logit - m) of some tokens, (n, tokens) from `start` on, m being a row's largest logit.

    Returns m and the row's sum, (n,) each.
    """
    stop = start + powers.shape[1]
    logits = torch.mm(hidden, head.rows(start, stop).t(), out=powers).to(accurate(hidden), copy=True)
    if head.bias is not None:
        logits += head.bias[start:stop]
    largest = logits.amax(1)
    logits.sub_(largest[:, None]).mul_(log2(e)).exp2_()
    powers.copy_(logits)
    return largest, logits.sum(1)
