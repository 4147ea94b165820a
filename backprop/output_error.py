"""The loss and its gradient at a model's output in closed form, without logits that are kept.

For logits l = W h, probabilities p = softmax(l) and the target t the loss is -log p_t, and its gradient

    dL/dh = sum over v of p_v W_v - W_t.

Logits exist for a part of the vocabulary at a time, once: both sums run along with the largest logit so far, by which
they are scaled (online softmax: arXiv 1805.02867, as in FlashAttention, arXiv 2205.14135).
"""

from collections.abc import Sequence
from math import e, log2

import torch

from pocketllm.engine.streamed.loss import CHUNK_BYTES, Head, accurate, columns_at_once, wanted_logits


def output_error(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position's loss in nats, (n,) fp32, and its gradient by what the head takes in, (n, width) fp32.

    hidden: (n, width); targets: (n,) int64, the token that each position predicts. Fp32 is float64 for a float64
    `hidden`. The head's rows are read once, in order.
    """
    wanted = wanted_logits(hidden, head, targets, CHUNK_BYTES)
    largest, total = wanted, torch.ones_like(wanted)  # sum of exp(logit - largest): so far of the target alone
    others = torch.zeros(hidden.shape, dtype=wanted.dtype)  # sum of exp(logit - largest) W_v, without the target's
    columns = columns_at_once(hidden, head, CHUNK_BYTES)
    for start in range(0, head.vocabulary, columns):
        stop = min(start + columns, head.vocabulary)
        rows = head.rows(start, stop)
        logits = (hidden @ rows.t()).to(wanted.dtype)
        if head.bias is not None:
            logits += head.bias[start:stop]
        here = ((targets >= start) & (targets < stop)).nonzero()[:, 0]
        logits[here, targets[here] - start] = -torch.inf
        before, largest = largest, torch.maximum(largest, logits.amax(1))
        shrunk = (before - largest).exp()
        exponentials = logits.sub_(largest[:, None]).mul_(log2(e)).exp2_()
        total = total * shrunk + exponentials.sum(1)
        others.mul_(shrunk[:, None]).add_(exponentials.to(hidden.dtype) @ rows)
    losses = largest - wanted + total.log()
    return losses, others.div_(total[:, None]).addcmul_(head.gather(targets), losses.neg().expm1()[:, None])


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
