"""The loss and its gradient at the output head in closed form, without storing the logits.

For logits l = W h, probabilities p = softmax(l) and the target t the loss is -log p_t, and its gradient

    dL/dh = sum over v of p_v W_v - W_t.

Logits are computed once, for one chunk of the vocabulary at a time. Both sums are scaled by the largest logit so far
(online softmax: arXiv 1805.02867, as in FlashAttention, arXiv 2205.14135).
"""

from collections.abc import Sequence
from math import e, log2

import torch

from pocketllm.engine.streamed.head import HeadAt
from pocketllm.engine.streamed.loss import CHUNK_BYTES, columns_at_once, over_labels, rounded, target_logits

#: Half of what the loss alone takes, since the exponentials are in memory beside the logits.
_CHUNK_BYTES = CHUNK_BYTES // 2


def output_error(
    hidden: torch.Tensor, head: HeadAt, targets: torch.Tensor, label_ids: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position's loss in nats, (n,) fp32, and its gradient with respect to `hidden`, (n, width) fp32.

    hidden: (n, width), the head's input; targets: (n,) int64 token ids; label_ids: the tokens of the softmax, if it is
    not over all of them. Float64 in place of fp32 for a float64 `hidden`. Reads the head's rows once, in order.
    """
    count = len(hidden)
    hidden, head, targets = over_labels(hidden, head, targets, label_ids)
    hidden, targets = rounded(hidden), rounded(targets)
    exact = target_logits(hidden, head, targets, _CHUNK_BYTES)
    largest, total = exact, torch.ones_like(exact)  # sum of exp(logit - largest), so far of the target only
    others = torch.zeros(hidden.shape, dtype=exact.dtype)  # sum of exp(logit - largest) W_v, without the target's
    columns = columns_at_once(hidden, head, _CHUNK_BYTES)
    for start in range(0, head.vocabulary, columns):
        stop = min(start + columns, head.vocabulary)
        rows = head.rows(start, stop)
        logits = (hidden @ rows.t()).to(exact.dtype)
        if head.bias is not None:
            logits += head.bias[start:stop]
        here = ((targets >= start) & (targets < stop)).nonzero()[:, 0]
        logits[here, targets[here] - start] = -torch.inf
        before, largest = largest, torch.maximum(largest, logits.amax(1))
        shrunk = (before - largest).exp()
        exponentials = logits.sub_(largest[:, None]).mul_(log2(e)).exp2_()
        total = total * shrunk + exponentials.sum(1)
        others.mul_(shrunk[:, None]).add_(exponentials.to(hidden.dtype) @ rows)
    losses = largest - exact + total.log()
    error = others.div_(total[:, None]).addcmul_(head.gather(targets), losses.neg().expm1()[:, None])
    return losses[:count], error[:count]
