"""A layer of any kind and its vector-Jacobian product by autograd: its own code runs a second time, with a graph."""

from collections.abc import Sequence

import torch

from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.layers import LayerCall
from pocketllm.engine.streamed.model import LanguageModel


class GraphLayer:
    """One layer with the adapters of some of its maps. `load` comes before its passes."""

    def __init__(self, model: LanguageModel, number: int, paths: Sequence[str], adapter: Adapter) -> None:
        """number: the layer's. paths: of the maps that are adapted; `adapter` is the model's current parameters."""
        self._model, self._number, self.paths, self._adapter = model, number, paths, adapter
        self.widths: Sequence[int] = ()  #: it keeps no activations
        self._leaves: list[torch.Tensor] = []

    def load(self) -> None:
        """Copy the adapters' factors in the compute dtype: the leaves of the graph."""
        dtype, scaling = self._model.context.dtype, self._adapter.scaling
        factors = [f for path in self.paths for f in (self._adapter.a[path], self._adapter.b[path] * scaling)]
        self._leaves = [factor.to(dtype).detach().requires_grad_() for factor in factors]
        for path, a, b in zip(self.paths, self._leaves[::2], self._leaves[1::2], strict=True):
            branch = self._model.linears[path].lora
            assert branch is not None, "the adapter is the model's current parameters"
            branch.leaves = (a, b)

    def forward(self, x: torch.Tensor, call: LayerCall, keep: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """(blocks, tokens, width) -> the same."""
        return self._model.stack.run(self._number, x, call)

    def vjp(
        self, x: torch.Tensor, call: LayerCall, error: torch.Tensor, kept: Sequence[torch.Tensor] = ()
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The gradients of <layer(x), error> in x, and in A and s B of each map, in the order of `paths`."""
        with torch.enable_grad():
            hidden = x.detach().requires_grad_()
            output = self.forward(hidden, call)
        dx, *gradients = vjp(output, [hidden, *self._leaves], error)
        return dx, gradients


def vjp(output: torch.Tensor, inputs: Sequence[torch.Tensor], error: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The gradients of <output, error>. Passing `error` as grad_outputs would import sympy (38 MB)."""
    with torch.enable_grad():
        product = (output * error).sum()
    return torch.autograd.grad(product, inputs)
