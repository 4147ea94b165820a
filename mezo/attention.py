"""Attention for short rows of text, as batched matrix products.

On a CPU torch's own attention takes the rows of a head one small block at a time. At the few hundred tokens that
training looks at, large products with the softmax between them, over the keys that some queries can see, take a
third of the time (16 x 128 tokens, 9 heads, bf16). Longer rows, and new tokens behind a cache, go to torch's.
"""

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from pocketllm.mezo.errors import UnsupportedModel

#: What models are told to use: `config._attn_implementation`.
NAME = "pocketllm"
#: The longest rows for which the scores are made here.
LONGEST = 512
#: The most bytes of scores that are made at a time.
SCORE_BYTES = 4 * 2**20
#: The queries of a row that are taken together.
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
    Raises UnsupportedModel for attention with more in it than that.
    """
    tokens = query.shape[2]
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise UnsupportedModel("The model caps its attention scores, or has sinks. Choose another model.")
    if options.get("position_bias") is not None or key.shape[2] != tokens or not 1 < tokens <= LONGEST:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **options
        )
        return result
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    batch, heads = query.shape[:2]
    output = query.new_empty(batch, tokens, heads, value.shape[-1])
    at_once = max(1, SCORE_BYTES // (heads * min(tokens, QUERIES) * tokens * query.element_size()))
    for start in range(0, batch, at_once):
        rows = slice(start, start + at_once)
        mask = None if attention_mask is None else attention_mask[rows]
        _attend(query[rows], key[rows], value[rows], mask, causal and mask is None, scale, output[rows])
    return output, None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    output: torch.Tensor,
) -> None:
    """softmax(scale Q K^T) V for some rows of the batch, into `output`."""
    batch, heads, tokens, size = query.shape
    groups = key.shape[1]
    shared = heads // groups
    # The heads of a group share keys and values: as more rows of one product, nothing is repeated in memory.
    queries = query.transpose(1, 2).reshape(batch, tokens, groups, shared, size).transpose(1, 2)
    queries = queries.reshape(batch * groups, tokens * shared, size) * scale
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    outputs = output.view(batch, tokens, groups, shared, -1).transpose(1, 2)
    for first in range(0, tokens, QUERIES):
        last = min(first + QUERIES, tokens)
        seen = last if causal else tokens  # no query looks at what lies behind it
        scores = torch.bmm(queries[:, first * shared : last * shared], keys[:, :seen].transpose(1, 2))
        by_query = scores.view(batch, groups, last - first, shared, seen)
        if causal:
            by_query += torch.full((last - first, seen), float("-inf"), dtype=scores.dtype).triu_(first + 1)[:, None]
        elif mask is not None:
            by_query.masked_fill_(~mask[:, :, first:last, None], torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1)
        del scores, by_query  # as large as what follows
        outputs[:, :, first:last] = torch.bmm(weights, values[:, :seen]).view(batch, groups, last - first, shared, -1)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
