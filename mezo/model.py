"""The language model: transformers' own layers on mmapped weights, with low-rank branches beside the linear maps.

Building it copies no weight: parameters are views on the weights file, so their pages are the file's, are shared
with other processes, and can be dropped by the kernel at any time.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.errors import AdapterError, ModelFileError, UnsupportedModel
from pocketllm.mezo.loss import block_losses
from pocketllm.mezo.native import NativeModel

#: Blocks that pass through the layers together when measuring.
MEASURE_BLOCKS = 8


class LowRankLinear(nn.Module):
    """A linear map with low-rank branches: the batch is split evenly, and each part goes through its own B.

    The base's product is computed once for the whole batch, whatever the number of branches: that is how both
    signs of a probe share it.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a: torch.Tensor | None = None  # (rank, in)
        self.branches: Sequence[torch.Tensor] = ()  # each (out, rank), scaling included

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, tokens, in) -> (batch, tokens, out)."""
        y: torch.Tensor = self.base(x)
        if self.a is None:
            return y
        low = x.to(self.a.dtype) @ self.a.t()
        parts = zip(low.chunk(len(self.branches)), self.branches, strict=True)
        delta = torch.cat([part @ b.t() for part, b in parts])
        return (y + delta).to(y.dtype)


class LanguageModel:
    """A causal language model that can be measured and run at several adapters' points at once."""

    def __init__(self, native: NativeModel) -> None:
        """Build the model on the folder's weights. Raises UnsupportedModel or ModelFileError."""
        self.native = native
        self.network = _build(native)
        self.linears = _insert_branches(self.network)

    def set_points(self, adapter: Adapter | None, points: Sequence[Sequence[torch.Tensor]]) -> None:
        """Let the next batches, split evenly, pass through these values of the adapter's B; None is the base alone.

        Raises AdapterError when the adapter names a module that this model doesn't have.
        """
        for linear in self.linears.values():
            linear.a, linear.branches = None, ()
        if adapter is None:
            return
        for i, path in enumerate(adapter.a):
            if path not in self.linears:
                raise AdapterError(f"The adapter belongs to another model: {self.native.folder.name} has no {path}.")
            self.linears[path].a = adapter.a[path]
            self.linears[path].branches = [point[i] * adapter.scaling for point in points]

    def use(self, adapter: Adapter | None) -> None:
        """Let everything from now on pass through the adapter as it stands; None is the base alone."""
        self.set_points(adapter, [adapter.parameters()] if adapter else [])

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) ids -> (batch, tokens, width), the last layer's normalised output."""
        output: torch.Tensor = self.network.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        return output

    def next_logits(self, inputs: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """(1, tokens) new ids behind what the cache holds -> (vocabulary,) fp32 logits of the token after them."""
        output = self.network.base_model(input_ids=inputs, cache=cache, use_cache=True)
        logits: torch.Tensor = output.last_hidden_state[0, -1] @ self._head.t()
        return logits.float()

    def block_losses(self, blocks: Blocks) -> list[float]:
        """Each block's mean loss in nats per token, at the point in use."""
        sums = [
            block_losses(self.hidden(part.inputs), self._head, part.targets) for part in blocks.split(MEASURE_BLOCKS)
        ]
        return (torch.cat(sums) / blocks.target_counts.clamp(min=1)).tolist()

    def losses_at(self, adapter: Adapter, batch: Blocks, points: Sequence[Sequence[torch.Tensor]]) -> list[float]:
        """The batch's mean loss in nats per token at each point: one walk through the layers for all of them."""
        self.set_points(adapter, points)
        copies = len(points)
        hidden = self.hidden(batch.inputs.repeat(copies, 1))
        sums = block_losses(hidden, self._head, batch.targets.repeat(copies, 1))
        return (sums.view(copies, -1).double().sum(1) / batch.tokens).tolist()

    @property
    def _head(self) -> torch.Tensor:
        weight: torch.Tensor = self.network.get_output_embeddings().weight
        return weight


def _build(native: NativeModel) -> PreTrainedModel:
    config = native.config()
    try:
        with torch.device("meta"):
            network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=native_dtype(native))
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedModel(f"transformers cannot build the model in {native.folder}: {error}") from error
    _compute_buffers(network)
    network.load_state_dict(native.tensors(), strict=False, assign=True)
    network.tie_weights()
    missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if missing:
        raise ModelFileError(f"{native.weights} lacks {', '.join(missing[:3])}. Import the model again.")
    network.requires_grad_(False)
    network.eval()
    return network


def native_dtype(native: NativeModel) -> torch.dtype:
    """The dtype of the folder's weights, which is also the one the layers compute in."""
    dtype = getattr(torch, native.manifest.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _compute_buffers(network: PreTrainedModel) -> None:
    """Give the buffers that are computed, not stored (rotary frequencies), their values.

    Built on the meta device they have none; `_init_weights` is where transformers computes them.
    """
    for module in network.modules():
        buffers = {name: b for name, b in module.named_buffers(recurse=False) if b.is_meta}
        for name, buffer in buffers.items():
            module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
        if buffers:
            network._init_weights(module)


def _insert_branches(network: PreTrainedModel) -> dict[str, LowRankLinear]:
    """Wrap every linear map of the layers, but not the output head; returns them by path, in model order."""
    head = network.get_output_embeddings()
    plain = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear) and m is not head]
    wrapped = {path: LowRankLinear(linear) for path, linear in plain}
    for path, linear in wrapped.items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, linear)
    return wrapped
