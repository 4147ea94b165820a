"""A transformers model on streamed weights.

The architecture is built from its config, without weights. Streamed modules (modules.py) then replace its linear maps,
embedding and output head; the layers' own code stays. Nothing here is specific to a family of models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import AdapterError, ModelFileError, UnsupportedModel
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.noise import Perturbation
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.head import HEAD_MARK, StreamedHead
from pocketllm.engine.streamed.layers import LayerCall, LayerPages, LayerStack
from pocketllm.engine.streamed.loss import CHUNK_BYTES, IGNORE_INDEX, token_losses
from pocketllm.engine.streamed.modules import (
    ForwardContext,
    LoRABranch,
    StreamedEmbedding,
    StreamedLinear,
    perturbed_forward,
)
from pocketllm.engine.streamed.weights import Scratch, Weight

with lean_transformers():
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    from pocketllm.engine.formats.architectures import auto_class
    from pocketllm.engine.streamed import attention


class Network:
    """The layers between token ids and losses. Several networks may share weights; each runs one batch at a time."""

    def __init__(
        self,
        model_folder: ModelFolder,
        weights: Mapping[str, Weight],
        *,
        dtype: torch.dtype,
        pages: LayerPages | None,
        share: int = 1,
    ) -> None:
        """Build the model with compute dtype `dtype`. Raises UnsupportedModel or ModelFileError.

        pages: shared by all networks on these weights; None never releases pages. share: the number of networks that
        share the memory for logits.
        """
        self._folder, self._weights = model_folder, weights
        self._logits_bytes = CHUNK_BYTES // share
        self.context = ForwardContext(dtype=dtype, release=pages is not None)
        self.module = _build(model_folder, dtype)
        self.parameters = _names(self.module)
        _check(model_folder, self.module, self.parameters, weights)
        self.linears: dict[str, StreamedLinear] = {}
        self.head = self._replace()
        self.stack = LayerStack(self.module, self.parameters, weights, pages, self.context)

    def set_parameters(self, trainable: Adapter | FullWeights | None) -> None:
        """See LanguageModel.set_parameters."""
        self.context.perturbations = ()
        for linear in self.linears.values():
            linear.lora = None
        numbers = trainable.numbers if isinstance(trainable, FullWeights) else {}
        for name, weight in self._weights.items():
            weight.number = numbers.get(name)
        if not isinstance(trainable, Adapter):
            return
        for number, (path, a) in enumerate(trainable.a.items()):
            adapted = self.linears.get(path)
            if adapted is None:
                raise AdapterError(f"The adapter belongs to another model: {self._folder.path.name} has no {path}.")
            adapted.lora = LoRABranch(self.context, number=number, a=a, b=trainable.b[path], scaling=trainable.scaling)

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
        losses = self._target_losses(rows, targets, blocks.label_ids, perturbations)
        sums = losses.new_zeros(copies, len(blocks))
        return sums.index_add_(1, places[0], losses)

    def _target_losses(
        self,
        rows: torch.Tensor,
        targets: torch.Tensor,
        label_ids: tuple[int, ...] | None,
        perturbations: Sequence[Perturbation],
    ) -> torch.Tensor:
        """(perturbations, targets, width) -> (perturbations, targets) losses in nats."""
        heads = [self.head.at(None)]  # for all perturbations
        if self.head.is_perturbed and perturbations:
            heads = [self.head.at(perturbation) for perturbation in perturbations]
        losses = [
            token_losses(part.flatten(0, 1), head, targets.repeat(len(part)), label_ids, chunk_bytes=self._logits_bytes)
            for part, head in zip(rows.chunk(len(heads)), heads, strict=True)
        ]
        if self.context.release:
            self.head.weight.release()
        return torch.cat(losses).view(rows.shape[:2])

    def _run(self, blocks: Batch) -> torch.Tensor:
        """(blocks, tokens, width): the input of the output head, by the model's own code."""
        mask: dict[str, Any] = {}
        if blocks.lengths is not None and self._folder.manifest.is_mlm:
            # Padding is on the right, which a causal model does not attend to.
            mask["attention_mask"] = (torch.arange(blocks.inputs.shape[1]) < blocks.lengths[:, None]).long()
        if not self._folder.manifest.is_mlm:
            mask["use_cache"] = False
        return self.head_input(self.module(input_ids=blocks.inputs, **mask))

    def head_input(self, output: Any) -> torch.Tensor:
        """The input of the output head. Raises UnsupportedModel when the model changes the logits after the head."""
        found, self.head.input = self.head.input, None
        assert found is not None
        if not (output.logits == HEAD_MARK).all():
            raise UnsupportedModel(
                f"{self._folder.path} holds a model that scales or caps its logits after the output head, which is not "
                "supported. Choose another model."
            )
        return found

    def _replace(self) -> StreamedHead:
        """Replace the modules with weights by streamed ones; returns the output head."""
        head, words = self.module.get_output_embeddings(), self.module.get_input_embeddings()
        streamed_head: StreamedHead | None = None
        placed: set[str] = set()
        for path, module in list(self.module.named_modules()):
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
            placed |= {self.parameters[path] for path in own.values()}
            if made is not None:
                parent, _, name = path.rpartition(".")
                setattr(self.module.get_submodule(parent), name, made)
        if streamed_head is None or not self.linears:
            lacking = "linear maps of type nn.Linear" if streamed_head else "an output head"
            raise UnsupportedModel(f"{self._folder.path} holds a model without {lacking}. Choose another model.")
        # A parameter of a module that also has sub-modules has no streamed replacement.
        if unplaced := set(self.parameters.values()) - placed:
            raise UnsupportedModel(
                f"{self._folder.path} has a kind of layer that cannot be streamed: {min(unplaced)}. Choose another "
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
        return self._weights[self.parameters[path]]


def _build(model_folder: ModelFolder, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture, with parameters on the meta device."""
    config = model_folder.config()
    build: Callable[..., PreTrainedModel] = auto_class(config).from_config
    try:
        with lean_transformers(), no_init_weights(), _without_memory():
            network = build(config, dtype=dtype, attn_implementation="eager")
            if network._supports_attention_backend:  # other models ignore it, or misread its masks
                network.set_attn_implementation(attention.NAME)
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedModel(f"transformers cannot build the model in {model_folder.path}: {error}") from error
    network.requires_grad_(False)
    network.eval()
    return network


@contextmanager
def _without_memory() -> Iterator[None]:
    """Put parameters that are registered meanwhile on the meta device, but not buffers, which are computed.

    `torch.device("meta")` would lose the buffers, and computing them on it imports sympy (40 MB).
    """

    def emptied(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


def _names(network: PreTrainedModel) -> dict[str, str]:
    """Path of each parameter -> its name in the weights file (tied parameters share one)."""
    tied: dict[str, str] = network.all_tied_weights_keys
    paths = [path for path, _ in network.named_parameters(remove_duplicate=False)]
    return {path: tied.get(path, path) for path in paths}


def _check(
    model_folder: ModelFolder, network: PreTrainedModel, names: dict[str, str], weights: Mapping[str, Weight]
) -> None:
    """Raise ModelFileError when the weights are not those of the architecture that the config describes."""
    if missing := set(names.values()) - weights.keys():
        raise ModelFileError(f"{model_folder.weights} lacks {', '.join(sorted(missing)[:3])}. Import the model again.")
    for path, parameter in network.named_parameters(remove_duplicate=False):
        if (found := weights[names[path]].shape) != parameter.shape:
            raise ModelFileError(
                f"{model_folder.weights} holds {names[path]} of shape {found}, but config.json requires "
                f"{tuple(parameter.shape)}. Import the model again."
            )
