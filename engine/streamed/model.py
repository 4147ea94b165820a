"""The language model on streamed weights: losses at several perturbations at once, and logits for decoding.

The architecture is transformers', built from its config without weights (network.py). Streamed modules (modules.py)
replace its linear maps, embedding and output head; the layers' own code stays. Nothing here is specific to a family of
models.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, power_of_two
from pocketllm.engine.errors import AdapterError, BadRequest, UnsupportedModel
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.noise import Perturbation
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.context import ForwardContext, Scratch
from pocketllm.engine.streamed.head import HEAD_MARK, StreamedHead
from pocketllm.engine.streamed.layers import LayerCall, LayerStack
from pocketllm.engine.streamed.linear import LoRABranch, StreamedLinear
from pocketllm.engine.streamed.loss import token_losses
from pocketllm.engine.streamed.modules import StreamedEmbedding, perturbed_forward
from pocketllm.engine.streamed.network import build, check_weights, parameter_names
from pocketllm.engine.streamed.weights import Weight, open_weights

with lean_transformers():
    from transformers import DynamicCache

#: Rows of the output head that are made dense together for the logits of one token.
HEAD_ROWS = 8192
#: As many tokens behind a cache are decoded: see ForwardContext.decoding.
DECODED_TOKENS = 16
#: Blocks in a micro-batch when a loss is measured, by default.
MEASURE_BLOCKS = 8


class LanguageModel:
    """A language model on streamed weights. Runs one batch at a time."""

    def __init__(
        self, model_folder: ModelFolder, *, dtype: torch.dtype | None = None, release_pages: bool = False
    ) -> None:
        """Build the model on the folder's weights. Raises UnsupportedModel or ModelFileError.

        dtype: the compute dtype; by default the fastest one, measured at import. release_pages: release each layer's
        pages of the weights file after use and prefetch the next layer's; for training.
        """
        self.folder = model_folder
        self.weights = open_weights(model_folder.weights)
        dtype = dtype or getattr(torch, model_folder.manifest.compute_dtype)
        self.context = ForwardContext(dtype=dtype, release=release_pages)
        self.network = build(model_folder, dtype)
        self._parameters = parameter_names(self.network)
        check_weights(model_folder, self.network, self._parameters, self.weights)
        for name, buffer in self.network.named_buffers():
            if name in self.weights:  # part of the model, as a factor on a layer's output is
                buffer.copy_(self.weights[name].floats)
        self.linears: dict[str, StreamedLinear] = {}
        self.head = self._replace()
        self.stack = LayerStack(self.network, self._parameters, self.weights, self.context)

    def set_parameters(self, trainable: Adapter | FullWeights | None) -> None:
        """Run with this adapter or these weights from now on, following their changes in place; None: the base model.

        Raises AdapterError when the adapter names a module that this model does not have.
        """
        self.context.perturbations = ()
        for linear in self.linears.values():
            linear.lora = None
        numbers = trainable.numbers if isinstance(trainable, FullWeights) else {}
        for name, weight in self.weights.items():
            weight.number = numbers.get(name)
        if not isinstance(trainable, Adapter):
            return
        for number, (path, a) in enumerate(trainable.a.items()):
            adapted = self.linears.get(path)
            if adapted is None:
                raise AdapterError(f"The adapter belongs to another model: {self.folder.path.name} has no {path}.")
            adapted.lora = LoRABranch(self.context, number=number, a=a, b=trainable.b[path], scaling=trainable.scaling)

    def full(self, dtype: torch.dtype | None = None) -> FullWeights:
        """Load all weights into memory for training; call `set_parameters` next. Raises BadRequest for packed weights.

        dtype: of the copy; by default that of the file.
        """
        weights = {name: self.weights[name] for name in self._parameters.values()}
        if packed := [name for name, weight in weights.items() if weight.packed]:
            raise BadRequest(
                f"Mode full requires weights that are stored as floats, but {packed[0]} is packed. "
                "Import the model as bfloat16, or train an adapter (training.mode = lora)."
            )
        return FullWeights({name: weight.load(dtype or weight.floats.dtype) for name, weight in weights.items()})

    def losses_at(self, perturbations: Sequence[Perturbation], batch: Batch, micro_batch: int) -> list[float]:
        """The batch's mean loss, in nats per target, at each perturbation of the current parameters.

        micro_batch: the most rows that pass through the layers together; a row is a block at one perturbation. The
        result does not depend on it.
        """
        at_once = min(len(perturbations), max(2, micro_batch - micro_batch % 2))  # both sides of a direction together
        sums = torch.zeros(len(perturbations), dtype=torch.float64)
        for first in range(0, len(perturbations), at_once):
            some = slice(first, min(first + at_once, len(perturbations)))
            for blocks in batch.split(max(1, micro_batch // (some.stop - some.start))):
                sums[some] += self.block_sums(blocks, perturbations[some]).double().sum(1)
        return (sums / max(1, batch.tokens)).tolist()

    def block_losses(self, blocks: Batch, micro_batch: int = MEASURE_BLOCKS) -> list[float]:
        """Each block's mean loss, in nats per target."""
        parts = blocks.split(power_of_two(micro_batch))
        sums = [self.block_sums(part.rounded(), ())[0, : len(part)] for part in parts]
        counts = blocks.target_counts.clamp(min=1)
        return (torch.cat(sums) / counts).tolist() if sums else []

    def mean_loss(self, batches: Iterable[Batch], micro_batch: int = MEASURE_BLOCKS) -> float:
        """The mean loss over all these blocks, in nats per target."""
        total, targets = 0.0, 0
        for blocks in batches:
            losses = torch.tensor(self.block_losses(blocks, micro_batch), dtype=torch.float64)
            total += float((losses * blocks.target_counts).sum())
            targets += blocks.tokens
        return total / max(1, targets)

    def block_sums(self, blocks: Batch, perturbations: Sequence[Perturbation]) -> torch.Tensor:
        """(perturbations, blocks): each block's summed loss in nats; without perturbations (1, blocks), at theta."""
        copies = max(1, len(perturbations))
        self.context.perturbations, self.context.rows = perturbations, copies * len(blocks)
        try:
            hidden = self._run(blocks.repeat(copies))
        finally:
            self.context.perturbations = ()
        places = (blocks.targets != IGNORE_INDEX).nonzero(as_tuple=True)
        targets = blocks.targets[places]
        rows = hidden.view(copies, *blocks.inputs.shape, -1)[:, places[0], places[1]]  # (copies, targets, width)
        del hidden
        heads = [self.head.at(None)]  # for all perturbations
        if self.head.is_perturbed and perturbations:
            heads = [self.head.at(perturbation) for perturbation in perturbations]
        losses = [
            token_losses(part.flatten(0, 1), head, targets.repeat(len(part)), blocks.label_ids)
            for part, head in zip(rows.chunk(len(heads)), heads, strict=True)
        ]
        if self.context.release:
            self.head.weight.release()
        sums = losses[0].new_zeros(copies, len(blocks))
        return sums.index_add_(1, places[0], torch.cat(losses).view(rows.shape[:2]))

    def hidden(self, blocks: Batch) -> torch.Tensor:
        """(blocks, tokens, width): the input of the output head."""
        self.context.perturbations = ()
        return self._run(blocks)

    def layer_calls(self, blocks: Batch) -> tuple[torch.Tensor, list[LayerCall]]:
        """(blocks, tokens, width): the input of the first layer; and the other arguments of each layer."""
        return self.stack.calls(lambda: self._run(blocks))

    def behind_layers(self, blocks: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """(blocks, tokens, width) output of the last layer -> (blocks, tokens, width) input of the output head."""
        found: list[torch.Tensor] = []
        self.stack.skip_all(hidden, lambda: found.append(self._run(blocks)))
        return found[0]

    def next_logits(self, inputs: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """(rows, tokens) token ids that follow the cache -> (rows, vocabulary) fp32 logits of the next token."""
        return self.logits(self._decode(inputs, cache, last=1))

    def all_logits(self, inputs: torch.Tensor, cache: DynamicCache, **places: torch.Tensor) -> torch.Tensor:
        """(1, tokens) token ids that follow the cache -> (tokens, vocabulary) fp32 logits of the token after each.

        places: `position_ids` (1, tokens), and `attention_mask` (1, 1, tokens, all tokens), which is added to the
        scores; where the tokens are no plain continuation.
        """
        return self.logits(self._decode(inputs, cache, last=inputs.shape[1], **places))

    def _decode(self, inputs: torch.Tensor, cache: DynamicCache, *, last: int, **places: torch.Tensor) -> torch.Tensor:
        """(rows * last, width): the input of the output head at the last tokens."""
        self.context.perturbations = ()
        self.context.decoding = inputs.numel() <= DECODED_TOKENS
        try:
            output = self.network(input_ids=inputs, cache=cache, use_cache=True, logits_to_keep=last, **places)
        finally:
            self.context.decoding = False
        return self._head_input(output)[:, -last:].flatten(0, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, width) -> (tokens, vocabulary), fp32."""
        head = self.head.at(None)
        logits = head.of_tokens(hidden)
        if logits is None:
            starts = range(0, head.vocabulary, HEAD_ROWS)
            states = hidden.t()
            parts = [head.rows(start, min(start + HEAD_ROWS, head.vocabulary)) @ states for start in starts]
            logits = torch.cat(parts).t().float()
        return logits if head.bias is None else logits + head.bias.float()

    def _run(self, blocks: Batch) -> torch.Tensor:
        """(blocks, tokens, width): the input of the output head, by the model's own code."""
        mask: dict[str, Any] = {}
        if blocks.lengths is not None and self.folder.manifest.is_mlm:
            # Padding is on the right, which a causal model does not attend to.
            mask["attention_mask"] = (torch.arange(blocks.inputs.shape[1]) < blocks.lengths[:, None]).long()
        if not self.folder.manifest.is_mlm:
            mask["use_cache"] = False
        return self._head_input(self.network(input_ids=blocks.inputs, **mask))

    def _head_input(self, output: Any) -> torch.Tensor:
        """The input of the output head. Raises UnsupportedModel when the model changes the logits after the head."""
        found, self.head.input = self.head.input, None
        assert found is not None
        if not (output.logits == HEAD_MARK).all():
            raise UnsupportedModel(
                f"{self.folder.path} holds a model that scales or caps its logits after the output head, which is not "
                "supported. Choose another model."
            )
        return found

    def _replace(self) -> StreamedHead:
        """Replace the modules with weights by streamed ones; returns the output head."""
        head, words = self.network.get_output_embeddings(), self.network.get_input_embeddings()
        streamed_head: StreamedHead | None = None
        placed: set[str] = set()
        for path, module in list(self.network.named_modules()):
            own = {name: f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)}
            if not own:
                continue
            made: nn.Module | None = None
            if module is head:
                made = streamed_head = StreamedHead(self.context, *self._matrix(own))
            elif type(module) is nn.Linear:
                made = self.linears[path] = StreamedLinear(self.context, *self._matrix(own))
            elif module is words and isinstance(module, nn.Embedding):
                made = StreamedEmbedding(self.context, self._weight(own["weight"]), module)
            elif next(module.children(), None) is None:
                self._keep_small(module, own)
            else:
                continue
            placed |= {self._parameters[path] for path in own.values()}
            if made is not None:
                parent, _, name = path.rpartition(".")
                setattr(self.network.get_submodule(parent), name, made)
        if streamed_head is None or not self.linears:
            lacking = "linear maps of type nn.Linear" if streamed_head else "an output head"
            raise UnsupportedModel(f"{self.folder.path} holds a model without {lacking}. Choose another model.")
        # A parameter of a module that also has sub-modules has no streamed replacement.
        if unplaced := set(self._parameters.values()) - placed:
            raise UnsupportedModel(
                f"{self.folder.path} has a kind of layer that cannot be streamed: {min(unplaced)}. Choose another "
                "model."
            )
        return streamed_head

    def _keep_small(self, module: nn.Module, own: dict[str, str]) -> None:
        """A norm or a position table: its weights stay dense."""
        trained = {name: self._weight(path) for name, path in own.items()}
        for name, small in trained.items():
            module._parameters[name] = small.dense(self.context.dtype, Scratch())  # type: ignore[assignment]
        module.forward = perturbed_forward(module, trained, self.context)

    def _matrix(self, own: dict[str, str]) -> tuple[Weight, Weight | None]:
        return self._weight(own["weight"]), self._weight(own["bias"]) if "bias" in own else None

    def _weight(self, path: str) -> Weight:
        return self.weights[self._parameters[path]]
