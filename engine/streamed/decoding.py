"""A layer of Llama's kind for a few tokens, by few operations.

Between the products of one token, a model's own code takes half as long again as these. Here the maps that share an
input are one product where the file has them side by side, and their adapters are two more: all A are one matrix, and
all B stand along the diagonal of another.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.streamed.context import ForwardContext
from pocketllm.engine.streamed.families import is_of_llamas_kind
from pocketllm.engine.streamed.linear import StreamedLinear
from pocketllm.engine.streamed.weights import adjacent

with lean_transformers():
    from pocketllm.engine.streamed.attention import attention, rotated, rotation


def decoding_forward(layer: nn.Module, context: ForwardContext) -> Callable[..., Any]:
    """The layer's `forward`, which takes this way while the context decodes."""
    inner = layer.forward
    config = getattr(getattr(layer, "self_attn", None), "config", None)
    if config is None or not is_of_llamas_kind(partial(getattr, config)):
        return inner
    decoder = _Decoder(layer)

    def forward(hidden: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if context.decoding and not arguments and decoder.load():
            return decoder(hidden, **options)
        decoder.forget()  # a step of training follows such a pass, and changes weights in place
        return inner(hidden, *arguments, **options)

    return forward


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(..., in) of a few tokens times (out, in) -> (..., out).

    In fp32 the weight comes first, times two columns at least: MKL takes 35 ms for a token of SmolLM2's layers, 13 for
    two, and 55 for two the other way around (two cores).
    """
    if weight.dtype != torch.float32:
        return F.linear(x, weight)
    columns = x.reshape(-1, x.shape[-1]).t()
    count = columns.shape[1]
    y = weight @ (columns if count > 1 else columns.expand(-1, 2))
    return y[:, :count].t().reshape(*x.shape[:-1], -1)


class _Decoder:
    """One layer. `load` comes before each pass."""

    def __init__(self, layer: Any) -> None:
        self._attention, self._mlp = layer.self_attn, layer.mlp
        self._norms = [layer.input_layernorm, nn.Identity(), layer.post_attention_layernorm, nn.Identity()]
        if hasattr(layer, "pre_feedforward_layernorm"):
            self._norms[1:] = self._norms[2], layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
        qkv = [getattr(self._attention, f"{name}_proj") for name in "qkv"]
        self._queries, self._size = qkv[0].out_features // self._attention.head_dim, self._attention.head_dim
        self._values = qkv[2].out_features
        self._qkv, self._out = _Maps(qkv), _Maps([self._attention.o_proj])
        self._gate_up, self._down = _Maps([self._mlp.gate_proj, self._mlp.up_proj]), _Maps([self._mlp.down_proj])
        self._maps = self._qkv, self._out, self._gate_up, self._down

    def load(self) -> bool:
        """Prepare the weights. Returns whether products can use them as they are stored."""
        return all(maps.load() for maps in self._maps)

    def forget(self) -> None:
        """Prepare them anew the next time."""
        for maps in self._maps:
            maps.forget()

    def __call__(
        self,
        hidden: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Any = None,
        **_options: Any,
    ) -> torch.Tensor:
        """(batch, tokens, width) -> the same, as transformers calls its layers."""
        norm, attended_norm, mlp_norm, fed_norm = self._norms
        projected = self._qkv(norm(hidden))
        heads = projected[..., : -self._values].view(*hidden.shape[:2], -1, self._size)  # of queries and keys
        if hasattr(self._attention, "q_norm"):
            queries, keys = heads[:, :, : self._queries], heads[:, :, self._queries :]
            heads = torch.cat((self._attention.q_norm(queries), self._attention.k_norm(keys)), 2)
        heads = rotated(heads, *rotation(position_embeddings)).transpose(1, 2)
        queries, keys = heads[:, : self._queries], heads[:, self._queries :]
        values = projected[..., -self._values :].view(*hidden.shape[:2], -1, self._size).transpose(1, 2)
        if cache is not None:
            keys, values = cache.update(keys, values, self._attention.layer_idx)
        attended, _ = attention(self._attention, queries, keys, values, attention_mask, scaling=self._attention.scaling)
        middle = hidden + attended_norm(self._out(attended.flatten(2)))
        gate, up = self._gate_up(mlp_norm(middle)).chunk(2, -1)
        output: torch.Tensor = middle + fed_norm(self._down(self._mlp.act_fn(gate) * up))
        return output


class _Maps:
    """Linear maps of one input, with their adapters."""

    def __init__(self, linears: Sequence[StreamedLinear]) -> None:
        self._linears = linears
        self._of: list[torch.Tensor | None] = []  #: what was loaded

    def forget(self) -> None:
        """See _Decoder.forget."""
        self._of = []

    def load(self) -> bool:
        """See _Decoder.load."""
        stored = [linear.weight.as_stored(linear.context) for linear in self._linears]
        now = [*stored, *(None if linear.lora is None else linear.lora.b for linear in self._linears)]
        if len(now) == len(self._of) and all(map(is_, now, self._of)):
            return True
        weights = [weight for weight in stored if weight is not None]
        if len(weights) < len(stored):
            return False
        joint = adjacent([linear.weight for linear in self._linears])
        self._weights = weights if joint is None else [joint]
        biases = [linear.bias.whole(linear.context, 1)[0] for linear in self._linears if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None  # these kinds have one for each map, or none
        self._load_adapters()
        self._of = now
        return True

    def _load_adapters(self) -> None:
        adapted = [(place, linear.lora) for place, linear in enumerate(self._linears) if linear.lora is not None]
        self._a = torch.cat([lora.a for _, lora in adapted]).t() if adapted else None
        blocks = [torch.empty(0, linear.out_features) for linear in self._linears]
        for place, lora in adapted:
            blocks[place] = lora.b.t() * lora.scaling
        self._b = torch.block_diag(*blocks)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, in) -> (batch, tokens, out of all maps)."""
        parts = [product(x, weight) for weight in self._weights]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if self._bias is not None:
            y += self._bias
        return y if self._a is None else y.add_(x.float() @ self._a @ self._b)
