"""A decoder layer of Llama's kind and its vector-Jacobian product in closed form: no graph, no autograd.

With x (positions, width) the input, N a norm (RMSNorm: arXiv 1910.07467), R the rotation by position (arXiv
2104.09864), L(x) = W x + s B A x a linear map with its adapter, and . the product of elements, the layer computes

    u = N1(x)        q, k, v = L_q u, L_k u, L_v u
    o = softmax(R Nq(q) (R Nk(k))^T / sqrt(size)) v             by head; keys are shared; Nq, Nk: Qwen 3 and Gemma 3
    a = L_o o        m = x + Na(a)                              Na and Nf in Gemma 3 alone, else the identity
    w = N2(m)        g, p = L_gate w, L_up w                    (SwiGLU: arXiv 2002.05202)
    z = h(g) . p     f = L_down z        y = m + Nf(f)          h: silu; in Gemma 3 gelu by tanh

and from the error dy = dLoss/dy, with L^T and N^T for what takes an error from an output to its input,

    df = Nf^T dy     dz = L_down^T df        dp = dz . h(g)        dg = dz . p . h'(g)
    dm = dy + N2^T(L_gate^T dg + L_up^T dp)
    da = Na^T dm     dq, dk, dv = attention^T(L_o^T da)
    dx = dm + N1^T(L_q^T dq + L_k^T dk + L_v^T dv)

where for each map with input x and error e: dA = (e s B)^T x and d(s B) = e^T (x A^T) (LoRA: arXiv 2106.09685).
The vector-Jacobian product needs x and the activations q, k, v, m, g, p; of Gemma 3 also a and f. Its layers differ in
R and in how far a query sees, by the arguments that the model passes. (By hand on phones: MeSP, arXiv 2602.13069; MeBP,
arXiv 2510.03425. Gemma 3: arXiv 2503.19786.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.families import LLAMA_FAMILIES, LLAMA_MAPS
from pocketllm.engine.streamed.layers import LayerCall
from pocketllm.engine.streamed.linear import StreamedLinear

with lean_transformers():
    from pocketllm.engine.streamed.attention import attend, attend_vjp, rotated, rotation

#: Each activation, and its vector-Jacobian product: (error, input) -> the error at its input.
_ACTIVATIONS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu_pytorch_tanh": (
        partial(F.gelu, approximate="tanh"),
        partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    ),
}


class Activations(NamedTuple):
    """What the vector-Jacobian product needs besides the layer's input: (positions, width of each)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    middle: torch.Tensor  #: the state between attention and the feed-forward part
    gate: torch.Tensor
    up: torch.Tensor
    attended: torch.Tensor = torch.empty(0)  #: attention's part before its norm, where that has one
    fed: torch.Tensor = torch.empty(0)  #: the same of the feed-forward part


class LlamaLayer:
    """One layer with the adapters of its maps. `load` comes before its passes, while its weights are in memory."""

    def __init__(self, module: Any, path: str, adapter: Adapter) -> None:
        """module: the layer, one of Llama's kind (`is_of_llamas_kind`); path: its path in the model."""
        attention = module.self_attn
        self._norm, self._mlp_norm = _Norm(module.input_layernorm), _Norm(module.post_attention_layernorm)
        self._attended_norm: _Norm | None = None
        self._fed_norm: _Norm | None = None
        if hasattr(module, "pre_feedforward_layernorm"):
            self._attended_norm, self._mlp_norm = self._mlp_norm, _Norm(module.pre_feedforward_layernorm)
            self._fed_norm = _Norm(module.post_feedforward_layernorm)
        self._act, self._act_vjp = _ACTIVATIONS[LLAMA_FAMILIES[attention.config.model_type]]
        head_norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._query_norm, self._key_norm = (None if norm is None else _Norm(norm) for norm in head_norms)
        self._size, self._scale = int(attention.head_dim), float(attention.scaling)
        self.paths = [f"{path}.{name}" for name in LLAMA_MAPS]
        linears = [module.get_submodule(name) for name in LLAMA_MAPS]
        self._qkv, self._out, self._gate_up, self._down = (
            _Maps(linears[some], self.paths[some], adapter)
            for some in (slice(0, 3), slice(3, 4), slice(4, 6), slice(6, 7))
        )
        #: Of the activations.
        self.widths = [linear.out_features for linear in linears[:6]]
        if self._fed_norm is not None:
            self.widths += 2 * [linears[6].out_features]

    def load(self) -> None:
        """Copy the adapters' factors in the compute dtype, and add them to weights that are dense copies in fp32."""
        for maps in (self._qkv, self._out, self._gate_up, self._down):
            maps.load()

    def forward(self, x: torch.Tensor, call: LayerCall, keep: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """(blocks, tokens, width) -> the same. Leaves the activations in `keep`, if that is given."""
        direct = keep if keep and keep[0].dtype == x.dtype else [None] * len(self.widths)
        found = self._activations(x, call, direct)
        for slot, activation in zip(keep, found, strict=False):
            if slot is not activation:
                slot.copy_(activation)
        if self._fed_norm is None:
            (y,) = self._down(self._act(found.gate).mul_(found.up), [None])
        else:
            y = self._fed_norm(found.fed)
        return y.add_(found.middle).view(x.shape)

    def _activations(self, x: torch.Tensor, call: LayerCall, into: Sequence[torch.Tensor | None]) -> Activations:
        """All but the last product, which counts where a norm follows. into: tensors of what is to come, or None."""
        rows = x.reshape(-1, x.shape[-1])
        query, key, value = self._qkv(self._norm(rows), into[:3])
        q, k, v = self._heads(query, key, value, x.shape, call)
        attended = attend(q, k, v, *self._visible(call))
        if self._attended_norm is None or self._fed_norm is None:
            (middle,) = self._out(attended.view(len(rows), -1), into[3:4])
            return Activations(query, key, value, middle.add_(rows), *self._gate_up(self._mlp_norm(middle), into[4:]))
        (out,) = self._out(attended.view(len(rows), -1), into[6:7])
        middle = torch.add(rows, self._attended_norm(out), out=into[3])
        gate, up = self._gate_up(self._mlp_norm(middle), into[4:6])
        (fed,) = self._down(self._act(gate).mul_(up), into[7:])
        return Activations(query, key, value, middle, gate, up, out, fed)

    def vjp(
        self, x: torch.Tensor, call: LayerCall, error: torch.Tensor, kept: Sequence[torch.Tensor] = ()
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The gradients of <layer(x), error> with respect to x, and to A and s B of each map in the order of `paths`.

        kept: the layer's activations; they are computed again if there are none.
        """
        made = [tensor.to(x.dtype) for tensor in kept] or self._activations(x, call, [None] * len(self.widths))
        kept = Activations(*made)
        dy = error.reshape(-1, error.shape[-1])
        df = dy if self._fed_norm is None else self._fed_norm.vjp(kept.fed, dy)
        gated = self._act(kept.gate)
        dlow = self._down.dlow([df])
        of_down = self._down.gradients(gated * kept.up, [df], dlow)
        dz = self._down.dx([df], dlow)
        dp = gated.mul_(dz)
        dg = self._act_vjp(dz.mul_(kept.up), kept.gate)
        errors = [dg, dp]
        dlow = self._gate_up.dlow(errors)
        of_gate_up = self._gate_up.gradients(self._mlp_norm(kept.middle), errors, dlow)
        dm = self._mlp_norm.vjp(kept.middle, self._gate_up.dx(errors, dlow)).add_(dy)
        dx, of_attention = self._attention_vjp(x, call, kept, dm)
        return dx.add_(dm).view(x.shape), [*of_attention, *of_gate_up, *of_down]

    def _attention_vjp(
        self, x: torch.Tensor, call: LayerCall, kept: Activations, dm: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        rows = x.reshape(-1, x.shape[-1])
        da = dm if self._attended_norm is None else self._attended_norm.vjp(kept.attended, dm)
        dlow = self._out.dlow([da])
        do = self._out.dx([da], dlow)
        q, k, v = self._heads(kept.query, kept.key, kept.value, x.shape, call)
        heads = do.view(*x.shape[:2], -1, self._size)
        dq, dk, dv, attended = attend_vjp(q, k, v, *self._visible(call), heads)
        of_out = self._out.gradients(attended.view(len(rows), -1), [da], dlow)
        cos, sin = rotation(call.options["position_embeddings"])
        dq_rotated = rotated(dq.transpose(1, 2), cos, -sin)
        dk_rotated = rotated(dk.transpose(1, 2), cos, -sin)
        if self._query_norm is not None and self._key_norm is not None:
            dq_rotated = self._query_norm.vjp(kept.query.view(dq_rotated.shape), dq_rotated)
            dk_rotated = self._key_norm.vjp(kept.key.view(dk_rotated.shape), dk_rotated)
        errors = [e.reshape(len(rows), -1) for e in (dq_rotated, dk_rotated, dv.transpose(1, 2))]
        dlow = self._qkv.dlow(errors)
        of_qkv = self._qkv.gradients(self._norm(rows), errors, dlow)
        return self._norm.vjp(rows, self._qkv.dx(errors, dlow)), [*of_qkv, *of_out]

    def _heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: torch.Size, call: LayerCall
    ) -> tuple[torch.Tensor, ...]:
        """Queries and keys normed and rotated, and values: (blocks, heads, tokens, size) each."""
        query, key, value = (rows.view(*shape[:2], -1, self._size) for rows in (query, key, value))
        if self._query_norm is not None and self._key_norm is not None:
            query, key = self._query_norm(query), self._key_norm(key)
        cos, sin = rotation(call.options["position_embeddings"])
        return tuple(x.transpose(1, 2) for x in (rotated(query, cos, sin), rotated(key, cos, sin), value))

    def _visible(self, call: LayerCall) -> tuple[torch.Tensor | None, bool, float]:
        """The mask, whether a query sees earlier keys alone, and the scale of the scores."""
        mask = call.options.get("attention_mask")
        return mask, mask is None, self._scale


class _Maps:
    """Linear maps of one input, with their adapters: all A are one matrix."""

    def __init__(self, linears: Sequence[StreamedLinear], paths: Sequence[str], adapter: Adapter) -> None:
        self.linears, self._context = linears, linears[0].context
        self._factors = [(adapter.a[path], adapter.b[path]) for path in paths]
        self._ranks, self._scaling = [len(a) for a, _ in self._factors], adapter.scaling

    def load(self) -> None:
        """See LlamaLayer.load. In half precision a sum of weight and adapter would round small updates away."""
        context = self._context
        self._a = torch.cat([a.to(context.dtype) for a, _ in self._factors])
        self._b = [(b * self._scaling).to(context.dtype) for _, b in self._factors]
        held = [linear.weight.held for linear in self.linears if linear.weight.held is not None]
        self._merged = len(held) == len(self.linears) and context.dtype.itemsize >= 4
        if self._merged:
            for weight, a, b in zip(held, self._a.split(self._ranks), self._b, strict=True):
                weight.addmm_(b, a)

    def __call__(self, x: torch.Tensor, into: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        """(positions, in) -> (positions, out) of each map. into: their tensors, or None."""
        outputs = [linear.product(x, slot) for linear, slot in zip(self.linears, into, strict=True)]
        if not self._merged:
            for y, low, b in zip(outputs, (x @ self._a.t()).split(self._ranks, 1), self._b, strict=True):
                y.addmm_(low, b.t())
        return outputs

    def dlow(self, errors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The maps' errors, (positions, out) each -> those behind A, (positions, rank of all maps)."""
        return torch.cat([error @ b for error, b in zip(errors, self._b, strict=True)], 1)

    def dx(self, errors: Sequence[torch.Tensor], dlow: torch.Tensor) -> torch.Tensor:
        """The maps' errors, and those behind A -> the error at their input, (positions, in)."""
        x = self.linears[0].product_with_transposed(errors[0])
        for linear, error in zip(self.linears[1:], errors[1:], strict=True):
            linear.product_with_transposed(error, into=x)
        return x if self._merged else x.addmm_(dlow, self._a)

    def gradients(self, x: torch.Tensor, errors: Sequence[torch.Tensor], dlow: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of A and of s B, map by map."""
        grad_a = (dlow.t() @ x).split(self._ranks)
        low = (x @ self._a.t()).split(self._ranks, 1)
        grad_b = (error.t() @ its for error, its in zip(errors, low, strict=True))
        return [gradient for both in zip(grad_a, grad_b, strict=True) for gradient in both]


class _Norm:
    """RMSNorm in fp32, with transformers' own order of roundings: y = gain . x r with r = (mean(x^2) + eps)^-1/2."""

    def __init__(self, module: Any) -> None:
        self._module, self._is_gemmas = module, not hasattr(module, "variance_epsilon")
        self._epsilon = float(module.eps if self._is_gemmas else module.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> the same."""
        wide = x.float()
        normed = wide * self._inverse(wide)
        gain = self._gain(x.dtype)
        return normed.mul_(gain).to(x.dtype) if self._is_gemmas else normed.to(x.dtype).mul_(gain)

    def vjp(self, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """dx = r e - x r^3 mean(e . x) with e = gain . dy."""
        wide, gain = x.float(), self._gain(x.dtype)
        inverse = self._inverse(wide)
        e = (dy.to(gain.dtype) * gain).float()
        along = (e * wide).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])
        return e.mul_(inverse).sub_(wide * along).to(x.dtype)

    def _gain(self, dtype: torch.dtype) -> torch.Tensor:
        """Gemma stores how far it is from 1, and multiplies in fp32. The last pass may have left another dtype."""
        gain: torch.Tensor = self._module.weight
        return 1.0 + gain.float() if self._is_gemmas else gain.to(dtype)

    def _inverse(self, wide: torch.Tensor) -> torch.Tensor:
        return wide.pow(2).mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()
