"""Attention as two products against torch's own, in every shape that a model asks for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pocketllm.engine.errors import UnsupportedModel
from pocketllm.engine.streamed.attention import MAX_TOKENS, QUERIES, SCORE_BYTES, attention

#: Sums of some hundred products of numbers of size 1, in another order. Scores up to 12 are rounded to bf16, 2^-8 of
#: them, before the softmax: as transformers does in its plainest attention, while torch's keeps them in float32.
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 6e-2}


class Layer(nn.Module):
    """What the interface hands over: the attention module of a model, which knows whether it is causal."""

    def __init__(self, *, causal: bool = True, heads_in_group: int = 1) -> None:
        super().__init__()
        self.is_causal = causal
        self.num_key_value_groups = heads_in_group


@dataclass(kw_only=True)
class Case:
    batch: int = 2
    heads: int = 4
    groups: int = 4
    tokens: int = 24
    size: int = 16
    value_size: int = 16
    causal: bool = True
    scaling: float | None = None
    mask: torch.Tensor | None = field(default=None, repr=False)
    dtype: torch.dtype = torch.float32
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(self.heads, self.size), (self.groups, self.size), (self.groups, self.value_size)]
        q, k, v = (
            torch.randn(self.batch, heads, self.tokens, size, generator=generator).to(self.dtype)
            for heads, size in shapes
        )
        self.inputs = q, k, v

    def ours(self) -> torch.Tensor:
        layer = Layer(causal=self.causal, heads_in_group=self.heads // self.groups)
        output, weights = attention(layer, *self.inputs, self.mask, scaling=self.scaling)
        assert weights is None
        assert output.is_contiguous()
        return output

    def torchs(self) -> torch.Tensor:
        query, key, value = self.inputs
        repeats = self.heads // self.groups
        output = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(repeats, 1),
            value.repeat_interleave(repeats, 1),
            attn_mask=self.mask,
            is_causal=self.causal and self.mask is None,
            scale=self.scaling,
        )
        return output.transpose(1, 2)

    def check(self) -> None:
        ours = self.ours()
        assert ours.shape == (self.batch, self.tokens, self.heads, self.value_size), self
        assert ours.dtype == self.dtype, self
        assert torch.allclose(ours, self.torchs(), rtol=0, atol=TOLERANCES[self.dtype]), self

    def gradients(self, outputs: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Of query, key and value, given an error of the output."""
        self.inputs = tuple(x.detach().requires_grad_() for x in self.inputs)  # type: ignore[assignment]
        output = outputs()
        error = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        return torch.autograd.grad(output, self.inputs, error)


def window(tokens: int, width: int, batch: int = 2) -> torch.Tensor:
    """(batch, 1, tokens, tokens): each token sees the last `width`."""
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    return ((distance >= 0) & (distance < width)).expand(batch, 1, tokens, tokens)


def padding(tokens: int, lengths: list[int]) -> torch.Tensor:
    """(batch, 1, tokens, tokens): keys behind a row's length are not seen."""
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None])[:, None, None].expand(-1, 1, tokens, -1)


#: Of one row's or several rows' scores, of a few queries.
SMALL: list[dict[str, Any]] = [
    {},
    {"causal": False},
    {"groups": 2},
    {"groups": 1, "heads": 3, "scaling": 0.5},
    {"scaling": 1.0, "groups": 2},
    {"value_size": 8, "groups": 2},
    {"value_size": 40},
    {"mask": window(24, 5)},
    {"mask": window(24, 1), "groups": 2},
    {"mask": padding(24, [24, 7]), "causal": False},
    {"mask": padding(24, [1, 23]), "causal": False, "groups": 2},
    {"tokens": 2},
    {"batch": 1, "tokens": 3, "size": 1, "heads": 1, "groups": 1, "value_size": 1},
]
#: Of more queries, or more scores, than are taken at a time: several rows together, and less than one.
LARGE: list[dict[str, Any]] = [
    {"tokens": QUERIES},
    {"tokens": QUERIES + 1, "groups": 2},
    {"tokens": 2 * QUERIES + 5, "groups": 1, "causal": False},
    {"tokens": 2 * QUERIES + 5, "mask": window(2 * QUERIES + 5, 9)},
    {"batch": 34, "heads": 9, "groups": 3, "tokens": QUERIES + 53, "size": 4, "value_size": 4},
    {"batch": 34, "heads": 2, "groups": 2, "tokens": MAX_TOKENS, "size": 4, "mask": window(MAX_TOKENS, 100, 34)},
    {"batch": 2, "heads": 36, "groups": 4, "tokens": MAX_TOKENS, "size": 4, "value_size": 4},
    {"batch": 1, "tokens": MAX_TOKENS + 1, "groups": 2},  # torch's own
]


def test_equals_torchs() -> None:
    for options, dtype in product([*SMALL, {"batch": 0}], TOLERANCES):
        Case(**options, dtype=dtype).check()
    for options in LARGE:
        Case(**options).check()


def test_a_mask_says_it_all() -> None:
    """A causal layer with a mask sees what the mask shows: the mask is causal where it has to be."""
    everything = torch.ones(2, 1, 24, 24, dtype=torch.bool)
    assert torch.allclose(Case(mask=everything).ours(), Case(causal=False).ours(), rtol=0, atol=2e-6)


def test_the_caller_may_say_what_the_layer_does_not() -> None:
    case = Case(causal=False)
    output, _ = attention(Layer(causal=False), *case.inputs, None, is_causal=True)
    assert torch.allclose(output, Case().torchs(), rtol=0, atol=2e-6)


def test_tokens_behind_a_cache_see_all_of_it_or_what_their_mask_shows() -> None:
    query, key, value = Case().inputs
    for count, mask in ((1, None), (5, window(24, 24)[:, :, -5:])):
        output, _ = attention(Layer(), query[:, :, -count:], key, value, mask)
        assert torch.allclose(output, Case().torchs()[:, -count:], rtol=0, atol=2e-6)


def test_large_scores_do_not_overflow() -> None:
    case = Case(scaling=1e4)
    assert torch.allclose(case.ours(), case.torchs(), rtol=0, atol=1e-3)


def test_what_it_would_leave_out_is_refused() -> None:
    for option in ("softcap", "s_aux"):
        given: dict[str, Any] = {option: torch.ones(4)}
        with pytest.raises(UnsupportedModel, match="Choose another model"):
            attention(Layer(), *Case().inputs, None, **given)
        given = {option: None}
        attention(Layer(), *Case().inputs, None, **given)


def test_gradients_equal_torchs() -> None:
    assert 34 * 9 * QUERIES * (QUERIES + 53) * 8 > SCORE_BYTES > 9 * QUERIES * (QUERIES + 53) * 8
    assert 36 * QUERIES * MAX_TOKENS * 8 > SCORE_BYTES
    for options in (*SMALL, *LARGE, {"scaling": 3.0}):
        case = Case(**options, dtype=torch.float64)
        for found, expected in zip(case.gradients(case.ours), case.gradients(case.torchs), strict=True):
            assert found.shape == expected.shape, case
            assert torch.allclose(found, expected, rtol=0, atol=1e-12 * max(1.0, float(expected.abs().max()))), case


def test_queries_of_any_layout_have_gradients_of_their_own() -> None:
    """As models hand them over: heads and tokens transposed, and all three from one tensor."""
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(2, 24, 4, 48, generator=generator, dtype=torch.float64).requires_grad_()

    def split() -> list[torch.Tensor]:
        return list(torch.split(qkv.transpose(1, 2), 16, dim=-1))

    q, k, v = split()
    ours, _ = attention(Layer(), q, k, v, None)
    q, k, v = split()
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    error = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    (found,), (expected,) = (torch.autograd.grad(output, [qkv], error) for output in (ours, theirs))
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)
