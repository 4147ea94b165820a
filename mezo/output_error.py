"""The error at a model's output in closed form: how the loss changes with what the output head, or its norm, takes in.

For logits l = W h, probabilities p = softmax(l) and the wanted token t the loss is -log p_t, and its gradient

    dL/dh = W^T (p - onehot(t)),    dL/dW = (p - onehot(t)) h^T.

No backward pass: one more product with the same W. The whole vocabulary's logits exist for a few positions at a time,
in the layers' own dtype.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pocketllm.mezo.loss import Head, accurate, columns_at_once, log_sum_exp_, wanted_logits

#: The most bytes of logits over the whole vocabulary that exist at a time.
LOGIT_BYTES = 24 * 2**20
#: The most bytes of logits in fp32 that are worked on at a time.
CHUNK_BYTES = 4 * 2**20
#: Of a norm without a name for it: what it adds to the mean square. Streams are so large that it hardly matters.
_EPSILON = 1e-6

#: Takes (first row, first token, error (rows, tokens)): p - onehot of some positions for a run of tokens.
OnError = Callable[[int, int, torch.Tensor], None]


def output_error(
    hidden: torch.Tensor,
    head: Head,
    wanted: torch.Tensor,
    *,
    on_error: OnError | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position's loss in nats, (n,) fp32, and its gradient by what the head takes in, (n, width) fp32.

    hidden: (n, width); wanted: (n,) int64, the token that each shall predict. on_error is given p - onehot piece by
    piece, in the dtype of `hidden`, valid until it returns.
    """
    losses = torch.empty(len(hidden), dtype=accurate(hidden))
    gradient = torch.zeros(hidden.shape, dtype=losses.dtype)
    size = max(1, logit_bytes // (hidden.itemsize * head.vocabulary))
    logits = torch.empty(min(size, len(hidden)), head.vocabulary, dtype=hidden.dtype)
    for first in range(0, len(hidden), size):
        part = slice(first, first + size)
        some, tokens = hidden[part], wanted[part]
        columns = columns_at_once(some, head, CHUNK_BYTES)
        total = _fill(logits[: len(some)], some, head, columns)
        losses[part] = total - wanted_logits(some, head, tokens, CHUNK_BYTES)
        for start in range(0, head.vocabulary, columns):
            stop = min(start + columns, head.vocabulary)
            error = logits[: len(some), start:stop].to(losses.dtype).sub_(total[:, None]).exp_()
            here = ((tokens >= start) & (tokens < stop)).nonzero()[:, 0]
            error[here, tokens[here] - start] -= 1
            narrow = error.to(hidden.dtype)
            gradient[part] += narrow @ head.rows(start, stop)
            if on_error is not None:
                on_error(first, start, narrow)
    # A wanted logit is summed more exactly than the others, so a sure word's loss could come out below zero.
    return losses.clamp_(min=0), gradient


def choice_error(
    hidden: torch.Tensor, head: Head, wanted: torch.Tensor, choices: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same where only these tokens can come; and p - onehot for them, (n, choices) fp32, as third."""
    tokens = torch.tensor(choices)
    rows = head.gather(tokens).to(accurate(hidden))
    logits = hidden.to(rows.dtype) @ rows.t()
    if head.bias is not None:
        logits += head.bias[tokens]
    places = (wanted[:, None] == tokens).int().argmax(1, keepdim=True)
    logs = logits.log_softmax(1)
    error = logs.exp()
    error.scatter_add_(1, places, torch.full_like(places, -1, dtype=error.dtype))
    return -logs.gather(1, places)[:, 0], error @ rows, error


@dataclass(frozen=True, kw_only=True)
class NormJacobian:
    """A norm y = gain * n(x) + bias, n(x) with a root mean square of one: RMSNorm (arXiv 1910.07467), LayerNorm."""

    gain: torch.Tensor  #: (width,) fp32
    centred: bool  #: whether it takes the mean away first, as LayerNorm does
    epsilon: float  #: added to the mean square

    @classmethod
    def measured(cls, norm: nn.Module, width: int, dtype: torch.dtype) -> "NormJacobian":
        """The Jacobian of a norm of any class, from what it makes of two inputs of mean zero, and of a constant one."""
        signs = torch.ones(width, dtype=dtype)
        signs[1::2] = -1
        both = norm(torch.stack((signs, -signs, torch.ones_like(signs)))[:, None])[:, 0].float()
        gain = (both[0] - both[1]) / 2 * signs.float()
        bias = (both[0] + both[1]) / 2
        centred = bool((both[2] - bias).abs().mean() < 0.5 * gain.abs().mean())
        epsilon = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), _EPSILON)
        return cls(gain=gain, centred=centred, epsilon=float(epsilon))

    def transposed(self, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """dL/dx from dL/dy at these inputs: (n, width) each, fp32.

        With r = 1 / rms(x), n = r x and g = gain * dL/dy it is r (g - n mean(g n)), less its own mean if centred.
        """
        if self.centred:
            x = x - x.mean(1, keepdim=True)
        inverse = torch.rsqrt(x.square().mean(1, keepdim=True) + self.epsilon)
        unit, scaled = x * inverse, gradient * self.gain
        back = inverse * (scaled - unit * (scaled * unit).mean(1, keepdim=True))
        return back - back.mean(1, keepdim=True) if self.centred else back


def _fill(logits: torch.Tensor, hidden: torch.Tensor, head: Head, columns: int) -> torch.Tensor:
    """Fill in the logits (n, vocabulary); returns their log-sum-exp, (n,)."""
    total = torch.full((len(hidden),), -torch.inf, dtype=accurate(hidden))
    for start in range(0, head.vocabulary, columns):
        stop = min(start + columns, head.vocabulary)
        chunk = torch.mm(hidden, head.rows(start, stop).t(), out=logits[:, start:stop])
        if head.bias is not None:
            chunk += head.bias[start:stop]
        torch.logaddexp(total, log_sum_exp_(chunk.to(total.dtype, copy=True)), out=total)
    return total
