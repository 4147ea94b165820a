"""One walk through a language model: transformers' own layers and arithmetic, our weights.

The architecture is built from its config without weights. Every linear map, the word embedding and the output
head then get modules that make a weight dense only while it runs (modules.py), so that a walk through the layers
needs the memory of one weight. Nothing here is written for one family of models.
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
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.params.perturbation import Perturbation
from pocketllm.engine.streamed.head import HEAD_MARK, StreamedHead
from pocketllm.engine.streamed.layers import LayerCall, LayerPages, LayerStack
from pocketllm.engine.streamed.loss import CHUNK_BYTES, IGNORE_INDEX, label_losses, token_losses
from pocketllm.engine.streamed.modules import (
    ForwardContext,
    LoRABranch,
    StreamedEmbedding,
    StreamedLinear,
    StreamedWeight,
    perturbed_forward,
)
from pocketllm.engine.streamed.weights import Scratch, Weight

with lean_transformers():
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    from pocketllm.engine.formats.architectures import auto_class
    from pocketllm.engine.streamed import attention


class Network:
    """The layers between token ids and losses, on weights that others may use at the same time.

    One batch at a time passes through it: what the modules need to know of the batch is in `context`.
    """

    def __init__(
        self,
        model_folder: ModelFolder,
        weights: Mapping[str, Weight],
        *,
        dtype: torch.dtype,
        pages: LayerPages | None,
        share: int = 1,
    ) -> None:
        """Build it for layers that compute in `dtype`. Raises UnsupportedModel or ModelFileError.

        pages: shared by all who walk through the same weights; None keeps in memory what was touched. share: how many
        of them share the memory for logits.
        """
        self._folder, self._weights = model_folder, weights
        self._logits_bytes = CHUNK_BYTES // share
        self.context = ForwardContext(dtype=dtype, release=pages is not None)
        self.module = _build(model_folder, dtype)
        self.parameters = _names(self.module)
        _check(model_folder, self.module, self.parameters, weights)
        self._trained: dict[str, list[StreamedWeight]] = {}
        self.linears: dict[str, StreamedLinear] = {}
        self.head_path = ""
        self.head = self._replace()
        self.stack = LayerStack(self.module, self.parameters, weights, pages)

    def use(self, theta: Adapter | FullWeights | None) -> None:
        """See LanguageModel.use."""
        self.context.points = ()
        self.head.lora = None
        for linear in self.linears.values():
            linear.lora = None
        for name, places in self._trained.items():
            for trained in places:
                trained.number = theta.numbers[name] if isinstance(theta, FullWeights) else None
        if not isinstance(theta, Adapter):
            return
        for number, (path, a) in enumerate(theta.a.items()):
            adapted = self.head if path == self.head_path else self.linears.get(path)
            if adapted is None:
                raise AdapterError(f"The adapter belongs to another model: {self._folder.path.name} has no {path}.")
            adapted.lora = LoRABranch(self.context, number=number, a=a, b=theta.b[path], scaling=theta.scaling)

    def hidden(self, blocks: Batch) -> torch.Tensor:
        """(blocks, tokens, width): what the output head sees, at the parameters in use."""
        self.context.points = ()
        return self._run(blocks)

    def layer_calls(self, blocks: Batch) -> tuple[torch.Tensor, list[LayerCall]]:
        """(blocks, tokens, width): what enters the first layer; and what each layer is called with besides."""
        return self.stack.calls(lambda: self._run(blocks))

    def behind_layers(self, blocks: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """(blocks, tokens, width): what the output head sees, when this is what leaves the last layer."""
        seen: list[torch.Tensor] = []
        self.stack.leave_with(hidden, lambda: seen.append(self._run(blocks)))
        return seen[0]

    def block_sums(self, blocks: Batch, points: Sequence[Perturbation]) -> torch.Tensor:
        """(points, blocks): the summed loss of each block at each point; without points at theta itself, as one."""
        copies = max(1, len(points))
        self.context.points, self.context.rows = points, copies * len(blocks)
        try:
            hidden = self._run(blocks.repeat(copies))
        finally:
            self.context.points = ()
        places = (blocks.targets != IGNORE_INDEX).nonzero(as_tuple=True)
        wanted = blocks.targets[places]
        rows = hidden.view(copies, *blocks.inputs.shape, -1)[:, places[0], places[1]]  # (copies, targets, width)
        del hidden
        losses = self._target_losses(rows, wanted, blocks.label_ids, points)
        sums = losses.new_zeros(copies, len(blocks))
        return sums.index_add_(1, places[0], losses)

    def _target_losses(
        self,
        rows: torch.Tensor,
        wanted: torch.Tensor,
        label_ids: tuple[int, ...] | None,
        points: Sequence[Perturbation],
    ) -> torch.Tensor:
        """(points, targets, width) -> (points, targets) losses in nats."""

        def losses(hidden: torch.Tensor, targets: torch.Tensor, point: Perturbation | None) -> torch.Tensor:
            head = self.head.at(point)
            hidden = head.extended(hidden)
            return (
                token_losses(hidden, head, targets, chunk_bytes=self._logits_bytes)
                if label_ids is None
                else label_losses(hidden, head, targets, label_ids)
            )

        if not self.head.moves or not points:  # one head for all points
            found = losses(rows.flatten(0, 1), wanted.repeat(len(rows)), None).view(rows.shape[:2])
        else:
            found = torch.stack([losses(part, wanted, point) for part, point in zip(rows, points, strict=True)])
        if self.context.release:
            self.head.weights.weight.release()
        return found

    def _run(self, blocks: Batch) -> torch.Tensor:
        """(blocks, tokens, width): what the output head sees when the model's own code runs."""
        mask: dict[str, Any] = {}
        if blocks.lengths is not None and self._folder.manifest.is_mlm:
            # A causal model looks to the left alone, where there is no padding.
            mask["attention_mask"] = (torch.arange(blocks.inputs.shape[1]) < blocks.lengths[:, None]).long()
        if not self._folder.manifest.is_mlm:
            mask["use_cache"] = False
        return self.seen(self.module(input_ids=blocks.inputs, **mask))

    def seen(self, output: Any) -> torch.Tensor:
        """What the output head saw of a batch. Raises UnsupportedModel when the model does more behind the head."""
        seen, self.head.seen = self.head.seen, None
        assert seen is not None
        if not (output.logits == HEAD_MARK).all():
            raise UnsupportedModel(
                f"{self._folder.path} holds a model that scales or caps its logits behind the output head, which the "
                "loss here would not see. Choose another model."
            )
        return seen

    def _replace(self) -> StreamedHead:
        """Put streamed modules in the place of those with weights; returns the output head."""
        head, words = self.module.get_output_embeddings(), self.module.get_input_embeddings()
        streamed_head: StreamedHead | None = None
        for path, module in list(self.module.named_modules()):
            own = {name: f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)}
            if not own:
                continue
            made: nn.Module | None = None
            if module is head:
                made = streamed_head = StreamedHead(self.context, *self._matrix(own))
                self.head_path = path
                self._note(own, weight=made.weights, bias=made.biases)
            elif type(module) is nn.Linear:
                made = self.linears[path] = StreamedLinear(self.context, *self._matrix(own))
                self._note(own, weight=made.weights, bias=made.biases)
            elif module is words and isinstance(module, nn.Embedding):
                made = StreamedEmbedding(self.context, self._weight(own["weight"]), module)
                self._note(own, weight=made.weights)
            elif next(module.children(), None) is None:
                self._keep_small(module, own)
            if made is not None:
                parent, _, name = path.rpartition(".")
                setattr(self.module.get_submodule(parent), name, made)
        if streamed_head is None or not self.linears:
            lacking = "linear maps of torch's kind" if streamed_head else "an output head"
            raise UnsupportedModel(f"{self._folder.path} holds a model without {lacking}. Choose another model.")
        # What stands beside sub-modules, and is not tied to one of theirs, would never be given its weights.
        if unplaced := set(self.parameters.values()) - self._trained.keys():
            raise UnsupportedModel(
                f"{self._folder.path} holds a kind of layer that cannot be streamed: {min(unplaced)}. Choose another "
                "model."
            )
        return streamed_head

    def _keep_small(self, module: nn.Module, own: dict[str, str]) -> None:
        """A norm or a position table: its weights are dense all the time."""
        trained = {name: StreamedWeight(self._weight(path), self.context) for name, path in own.items()}
        for name, small in trained.items():
            # With a scratch of its own: it stays.
            module._parameters[name] = small.weight.dense(self.context.dtype, Scratch())  # type: ignore[assignment]
            self._note(own, **{name: small})
        module.forward = perturbed_forward(module, trained, self.context)

    def _matrix(self, own: dict[str, str]) -> tuple[Weight, Weight | None]:
        return self._weight(own["weight"]), self._weight(own["bias"]) if "bias" in own else None

    def _weight(self, path: str) -> Weight:
        return self._weights[self.parameters[path]]

    def _note(self, own: dict[str, str], **trained: StreamedWeight | None) -> None:
        for name, place in trained.items():
            if place is not None:
                self._trained.setdefault(self.parameters[own[name]], []).append(place)


def _build(model_folder: ModelFolder, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture, with parameters that have a shape and no memory."""
    config = model_folder.config()
    build: Callable[..., PreTrainedModel] = auto_class(config).from_config
    try:
        with lean_transformers(), no_init_weights(), _without_memory():
            network = build(config, dtype=dtype, attn_implementation="eager")
            if network._supports_attention_backend:  # others take no notice, or misread the masks that ours goes with
                network.set_attn_implementation(attention.NAME)
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedModel(f"transformers cannot build the model in {model_folder.path}: {error}") from error
    network.requires_grad_(False)
    network.eval()
    return network


@contextmanager
def _without_memory() -> Iterator[None]:
    """Let parameters that are made meanwhile be of torch's meta device, and buffers, which are computed, be real.

    Under `torch.device("meta")` buffers would be lost, and computing them imports 40 MB of symbolic algebra.
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
    """Every parameter by its path -> the name under which the weights file holds it (of tied ones the first)."""
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
                f"{model_folder.weights} holds {names[path]} of shape {found}, but config.json asks for "
                f"{tuple(parameter.shape)}. Import the model again."
            )
