"""Attention for short rows of text, as batched matrix products.

On a CPU torch's own attention processes each head in small blocks. For the few hundred tokens of a training block,
large products with a softmax between them, over the visible keys only, take a third of the time (16 x 128 tokens, 9
heads, bf16). Longer rows, and decoding with a cache, use torch's.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from pocketllm.engine.errors import UnsupportedModel

#: The name of this implementation: `config._attn_implementation`.
NAME = "pocketllm"
#: Longer rows use torch's attention.
MAX_TOKENS = 512
#: The most bytes of scores that exist at a time.
SCORE_BYTES = 4 * 2**20
#: Queries of a row that share a product.
QUERIES = 64


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (batch, heads, tokens, size), key and value (batch, groups, ...).

    Returns (batch, tokens, heads, size) and no weights. The mask is boolean, True where a query sees a key.
    Raises UnsupportedModel for attention with a score cap or sinks.
    """
    tokens = query.shape[2]
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise UnsupportedModel("The model caps its attention scores or uses attention sinks. Choose another model.")
    if options.get("position_bias") is not None or key.shape[2] != tokens or not 1 < tokens <= MAX_TOKENS:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **options
        )
        return result
    causal = (getattr(module, "is_causal", True) if is_causal is None else is_causal) and attention_mask is None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: torch.Tensor = _Attention.apply(query, key, value, attention_mask, causal, scale)  # type: ignore[no-untyped-call, unused-ignore]
    return output, None


class _Attention(torch.autograd.Function):
    """`attend` with a graph. The backward pass computes the scores again; storing them would take too much memory."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rest = rest
        return attend(query, key, value, *rest)

    @staticmethod
    def backward(ctx: Any, error: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        mask, causal, scale = ctx.rest
        *found, _ = attend_vjp(query, key, value, mask, causal, scale, error)
        return *found, None, None, None


def rotation(position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch or 1, tokens, 1, size / 2): cosine and sine of each pair's angle, of which transformers has all twice."""
    cos, sin = (angles[:, :, None, : angles.shape[-1] // 2] for angles in position_embeddings)
    return cos, sin


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads, size) -> the same, a new tensor; by the negative angle with -sin.

    Rotary position embeddings (arXiv 2104.09864, section 3.4.2).
    """
    first, second = x.chunk(2, -1)
    y = torch.empty(x.shape, dtype=x.dtype)
    half = first.shape[-1]
    torch.mul(first, cos, out=y[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=y[..., half:]).addcmul_(first, sin)
    return y


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float
) -> torch.Tensor:
    """softmax(scale Q K^T) V: (batch, heads or groups, tokens, size) each -> (batch, tokens, heads, size)."""
    batch, heads, tokens, _ = query.shape
    output = query.new_empty(batch, tokens, heads, value.shape[-1])
    for rows in _row_parts(query):
        groups = _Groups(query[rows], key[rows], mask if mask is None else mask[rows], causal, scale)
        outputs = groups.by_query(output[rows])
        values = value[rows].flatten(0, 1)
        for part, seen, weights in groups.weights():
            outputs[:, :, part] = torch.bmm(weights, values[:, :seen]).view(outputs[:, :, part].shape)
    return output


def attend_vjp(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    error: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of <attend(...), error> with respect to queries, keys and values; and the output, once more."""
    at_query, at_key, at_value = (
        torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
    )
    output = torch.empty_like(error)
    for rows in _row_parts(query):
        groups = _Groups(query[rows], key[rows], mask if mask is None else mask[rows], causal, scale)
        errors = groups.by_query(error[rows]).flatten(0, 1)  # (groups of all rows, tokens, shared, size)
        outputs = groups.by_query(output[rows])
        to_query = groups.by_query(at_query[rows].transpose(1, 2))
        to_key, to_value = at_key[rows].flatten(0, 1), at_value[rows].flatten(0, 1)
        values = value[rows].flatten(0, 1)
        for part, seen, weights in groups.weights():
            dy = errors[:, part].flatten(1, 2)
            found = torch.bmm(weights, values[:, :seen])
            outputs[:, :, part] = found.view(outputs[:, :, part].shape)
            to_value[:, :seen] += torch.bmm(weights.transpose(1, 2), dy)
            # dS = P * (dP - sum(dP * P)), and that sum over keys is the one of dy * output over a head.
            at_scores = torch.bmm(dy, values[:, :seen].transpose(1, 2))
            at_scores.sub_(found.mul_(dy).sum(2, keepdim=True)).mul_(weights)
            to_key[:, :seen] += torch.bmm(at_scores.transpose(1, 2), groups.queries_of(part))
            made = torch.bmm(at_scores, groups.keys[:, :seen]).mul_(scale)
            to_query[:, :, part] = made.view(to_query[:, :, part].shape)
    return at_query, at_key, at_value, output


def _row_parts(query: torch.Tensor) -> Iterator[slice]:
    """Rows of the batch whose scores exist at a time."""
    batch, heads, tokens, _ = query.shape
    at_once = max(1, SCORE_BYTES // (heads * min(tokens, QUERIES) * tokens * query.element_size()))
    return (slice(start, start + at_once) for start in range(0, batch, at_once))


class _Groups:
    """The heads of some rows, grouped by the keys they share, so that no key is repeated (grouped-query attention)."""

    def __init__(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float
    ) -> None:
        self._batch, heads, self._tokens, size = query.shape
        self._groups = key.shape[1]
        self._shared = heads // self._groups
        self._mask, self._causal = mask, causal
        queries = self.by_query(query.transpose(1, 2)).reshape(self._batch * self._groups, -1, size)
        self._queries = queries * scale
        self.keys = key.flatten(0, 1)

    def by_query(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, heads, size) -> a view of it, (batch, groups, tokens, heads of a group, size)."""
        return x.view(self._batch, self._tokens, self._groups, self._shared, -1).transpose(1, 2)

    def queries_of(self, part: slice) -> torch.Tensor:
        """(batch * groups, tokens of the part * heads of a group, size), scaled."""
        return self._queries[:, part.start * self._shared : part.stop * self._shared]

    def weights(self) -> Iterator[tuple[slice, int, torch.Tensor]]:
        """Yield (slice of tokens, number of visible keys, (batch * groups, rows, keys) attention weights)."""
        for first in range(0, self._tokens, QUERIES):
            part = slice(first, min(first + QUERIES, self._tokens))
            count = part.stop - first
            seen = part.stop if self._causal else self._tokens  # a query sees no later key
            scores = torch.bmm(self.queries_of(part), self.keys[:, :seen].transpose(1, 2))
            by_query = scores.view(self._batch, self._groups, count, self._shared, seen)
            if self._causal:
                by_query += torch.full((count, seen), float("-inf"), dtype=scores.dtype).triu_(first + 1)[:, None]
            elif self._mask is not None:
                by_query.masked_fill_(~self._mask[:, :, part, None], torch.finfo(scores.dtype).min)
            weights = torch.softmax(scores, dim=-1)
            del scores, by_query  # free them before the next product
            yield part, seen, weights


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
