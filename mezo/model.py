"""The language model: transformers' own layers and arithmetic, our weights.

The architecture is built from its config without weights. Every linear map, the word embedding and the output
head then get modules that make a weight dense only while it runs (streaming.py), so that a walk through the layers
needs the memory of one weight. Nothing here is written for one family of models.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks
from pocketllm.mezo.errors import AdapterError, ModelFileError, UnsupportedModel
from pocketllm.mezo.estimator import Point
from pocketllm.mezo.full import FullWeights
from pocketllm.mezo.lean import lean_transformers
from pocketllm.mezo.loss import NO_TARGET, choice_losses, token_losses
from pocketllm.mezo.native import NativeModel
from pocketllm.mezo.streaming import (
    HEAD_MARK,
    LowRank,
    StreamedEmbedding,
    StreamedHead,
    StreamedLinear,
    Trained,
    Walk,
    sided,
)
from pocketllm.mezo.weights import Scratch, Weight, open_weights

with lean_transformers():
    from transformers import DynamicCache, PreTrainedModel
    from transformers.initialization import no_init_weights

    from pocketllm.mezo import attention
    from pocketllm.mezo.architectures import auto_class

#: Rows of the output head that are made dense together for the logits of one token.
HEAD_ROWS = 8192
#: Blocks that pass through the layers together when measuring, unless the caller says otherwise.
MEASURE_BLOCKS = 8


class LanguageModel:
    """A language model that can be measured at several points in parameter space at once, and run at one."""

    def __init__(self, native: NativeModel, *, dtype: torch.dtype | None = None, release_pages: bool = False) -> None:
        """Build the model on the folder's weights. Raises UnsupportedModel or ModelFileError.

        dtype: that the layers compute in; by default what was measured best at import. release_pages: give each
        layer's pages of the weights file back when it has run, and read the next layer's ahead; for training.
        """
        self.native = native
        self.walk = Walk(dtype=dtype or getattr(torch, native.manifest.compute_dtype), release=release_pages)
        self.weights = open_weights(native.weights)
        self.network = _build(native, self.walk.dtype)
        self.parameters = _names(self.network)
        _check(native, self.network, self.parameters, self.weights)
        self._trained: dict[str, list[Trained]] = {}
        self.linears: dict[str, StreamedLinear] = {}
        self.head = self._replace()
        if release_pages:
            _stream_layers(self.network, self.parameters, self.weights)

    def use(self, theta: Adapter | FullWeights | None) -> None:
        """Let everything from now on pass through these parameters as they stand; None is the base alone.

        Raises AdapterError when the adapter names a module that this model doesn't have.
        """
        self.walk.points = ()
        for linear in self.linears.values():
            linear.low_rank = None
        for name, places in self._trained.items():
            for trained in places:
                trained.number = theta.numbers[name] if isinstance(theta, FullWeights) else None
        if not isinstance(theta, Adapter):
            return
        for number, (path, a) in enumerate(theta.a.items()):
            if path not in self.linears:
                raise AdapterError(f"The adapter belongs to another model: {self.native.folder.name} has no {path}.")
            self.linears[path].low_rank = LowRank(self.walk, number=number, a=a, b=theta.b[path], scaling=theta.scaling)

    def full(self, dtype: torch.dtype | None = None) -> FullWeights:
        """All weights, taken into memory to be trained; `use` them next. Raises BadRequest for packed weights.

        dtype: in which they are kept; by default as they are stored.
        """
        names = dict.fromkeys(self.parameters.values())
        return FullWeights.load({name: self.weights[name] for name in names}, dtype)

    def losses_at(self, points: Sequence[Point], batch: Blocks, rows_at_once: int) -> list[float]:
        """The batch's mean loss in nats per target at each point around the parameters in use.

        rows_at_once: the most rows, a block at a point being one, that pass through the layers together; the sums
        over such parts are exact, so it decides about memory and speed alone. Points of a direction stay together.
        """
        at_once = min(len(points), max(2, rows_at_once - rows_at_once % 2))
        sums = torch.zeros(len(points), dtype=torch.float64)
        for first in range(0, len(points), at_once):
            some = points[first : first + at_once]
            for part in batch.split(max(1, rows_at_once // len(some))):
                sums[first : first + at_once] += self._block_sums(part, some).double().sum(1)
        return (sums / max(1, batch.tokens)).tolist()

    def block_losses(self, blocks: Blocks, rows_at_once: int = MEASURE_BLOCKS) -> list[float]:
        """Each block's mean loss in nats per target, at the parameters in use."""
        sums = [self._block_sums(part, ())[0] for part in blocks.split(rows_at_once)]
        counts = blocks.target_counts.clamp(min=1)
        return (torch.cat(sums) / counts).tolist() if sums else []

    def hidden(self, blocks: Blocks) -> torch.Tensor:
        """(blocks, tokens, width): what the output head sees, at the parameters in use."""
        self.walk.points = ()
        return self._through_layers(blocks.inputs, blocks.lengths)

    def next_logits(self, inputs: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """(1, tokens) new ids behind what the cache holds -> (vocabulary,) fp32 logits of the token after them."""
        self.walk.points = ()
        output = self.network(input_ids=inputs, cache=cache, use_cache=True, logits_to_keep=1)
        hidden, head = self._seen(output)[0, -1], self.head.at(None)
        starts = range(0, head.vocabulary, HEAD_ROWS)
        logits = torch.cat([head.rows(s, min(s + HEAD_ROWS, head.vocabulary)) @ hidden for s in starts])
        return (logits if head.bias is None else logits + head.bias).float()

    def _block_sums(self, blocks: Blocks, points: Sequence[Point]) -> torch.Tensor:
        """(points, blocks): the summed loss of each block at each point; without points at theta itself, as one."""
        copies = max(1, len(points))
        self.walk.points, self.walk.rows = points, copies * len(blocks)
        try:
            lengths = None if blocks.lengths is None else blocks.lengths.repeat(copies)
            hidden = self._through_layers(blocks.inputs.repeat(copies, 1), lengths)
        finally:
            self.walk.points = ()
        places = (blocks.targets != NO_TARGET).nonzero(as_tuple=True)
        wanted = blocks.targets[places]
        rows = hidden.view(copies, *blocks.inputs.shape, -1)[:, places[0], places[1]]  # (copies, targets, width)
        del hidden
        losses = self._target_losses(rows, wanted, blocks.choices, points)
        sums = losses.new_zeros(copies, len(blocks))
        return sums.index_add_(1, places[0], losses)

    def _target_losses(
        self, rows: torch.Tensor, wanted: torch.Tensor, choices: tuple[int, ...] | None, points: Sequence[Point]
    ) -> torch.Tensor:
        """(points, targets, width) -> (points, targets) losses in nats."""

        def losses(hidden: torch.Tensor, targets: torch.Tensor, point: Point | None) -> torch.Tensor:
            head = self.head.at(point)
            return (
                token_losses(hidden, head, targets)
                if choices is None
                else choice_losses(hidden, head, targets, choices)
            )

        if self.head.weights.number is None or not points:  # one head for all points
            found = losses(rows.flatten(0, 1), wanted.repeat(len(rows)), None).view(rows.shape[:2])
        else:
            found = torch.stack([losses(part, wanted, point) for part, point in zip(rows, points, strict=True)])
        if self.walk.release:
            self.head.weights.weight.release()
        return found

    def _through_layers(self, inputs: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        mask: dict[str, Any] = {}
        if lengths is not None and self.native.manifest.masked:
            # A causal model looks to the left alone, where there is no padding.
            mask["attention_mask"] = (torch.arange(inputs.shape[1]) < lengths[:, None]).long()
        if not self.native.manifest.masked:
            mask["use_cache"] = False
        return self._seen(self.network(input_ids=inputs, **mask))

    def _seen(self, output: Any) -> torch.Tensor:
        seen, self.head.seen = self.head.seen, None
        assert seen is not None
        if not (output.logits == HEAD_MARK).all():
            raise UnsupportedModel(
                f"{self.native.folder} holds a model that scales or caps its logits behind the output head, which the "
                "loss here would not see. Choose another model."
            )
        return seen

    def _replace(self) -> StreamedHead:
        """Put streamed modules in the place of those with weights; returns the output head."""
        head, words = self.network.get_output_embeddings(), self.network.get_input_embeddings()
        streamed_head: StreamedHead | None = None
        for path, module in list(self.network.named_modules()):
            own = {name: f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)}
            if not own:
                continue
            made: nn.Module | None = None
            if module is head:
                made = streamed_head = StreamedHead(self.walk, *self._matrix(own))
                self._note(own, weight=made.weights, bias=made.biases)
            elif type(module) is nn.Linear:
                made = self.linears[path] = StreamedLinear(self.walk, *self._matrix(own))
                self._note(own, weight=made.weights, bias=made.biases)
            elif module is words and isinstance(module, nn.Embedding):
                made = StreamedEmbedding(self.walk, self._weight(own["weight"]), module)
                self._note(own, weight=made.weights)
            elif next(module.children(), None) is None:
                self._keep_small(module, own)
            if made is not None:
                parent, _, name = path.rpartition(".")
                setattr(self.network.get_submodule(parent), name, made)
        if streamed_head is None or not self.linears:
            lacking = "linear maps of torch's kind" if streamed_head else "an output head"
            raise UnsupportedModel(f"{self.native.folder} holds a model without {lacking}. Choose another model.")
        # What stands beside sub-modules, and is not tied to one of theirs, would never be given its weights.
        if unplaced := set(self.parameters.values()) - self._trained.keys():
            raise UnsupportedModel(
                f"{self.native.folder} holds a kind of layer that cannot be streamed: {min(unplaced)}. Choose another "
                "model."
            )
        return streamed_head

    def _keep_small(self, module: nn.Module, own: dict[str, str]) -> None:
        """A norm or a position table: its weights are dense all the time."""
        trained = {name: Trained(self._weight(path), self.walk) for name, path in own.items()}
        for name, small in trained.items():
            # With a scratch of its own: it stays.
            module._parameters[name] = small.weight.dense(self.walk.dtype, Scratch())  # type: ignore[assignment]
            self._note(own, **{name: small})
        module.forward = sided(module, trained, self.walk)

    def _matrix(self, own: dict[str, str]) -> tuple[Weight, Weight | None]:
        return self._weight(own["weight"]), self._weight(own["bias"]) if "bias" in own else None

    def _weight(self, path: str) -> Weight:
        return self.weights[self.parameters[path]]

    def _note(self, own: dict[str, str], **trained: Trained | None) -> None:
        for name, place in trained.items():
            if place is not None:
                self._trained.setdefault(self.parameters[own[name]], []).append(place)


def _build(native: NativeModel, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture, with parameters that have a shape and no memory."""
    config = native.config()
    build: Callable[..., PreTrainedModel] = auto_class(config).from_config
    try:
        with lean_transformers(), no_init_weights(), _without_memory():
            network = build(config, dtype=dtype, attn_implementation="eager")
            if network._supports_attention_backend:  # others take no notice, or misread the masks that ours goes with
                network.set_attn_implementation(attention.NAME)
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedModel(f"transformers cannot build the model in {native.folder}: {error}") from error
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


def _check(native: NativeModel, network: PreTrainedModel, names: dict[str, str], weights: dict[str, Weight]) -> None:
    """Raise ModelFileError when the weights are not those of the architecture that the config describes."""
    if missing := set(names.values()) - weights.keys():
        raise ModelFileError(f"{native.weights} lacks {', '.join(sorted(missing)[:3])}. Import the model again.")
    for path, parameter in network.named_parameters(remove_duplicate=False):
        if (found := weights[names[path]].shape) != parameter.shape:
            raise ModelFileError(
                f"{native.weights} holds {names[path]} of shape {found}, but config.json asks for "
                f"{tuple(parameter.shape)}. Import the model again."
            )


def _stream_layers(network: PreTrainedModel, names: dict[str, str], weights: dict[str, Weight]) -> None:
    """Read the next layer ahead while one runs, and give a layer's pages back after it."""
    count = network.config.get_text_config().num_hidden_layers
    stacks = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        return
    path, layers = stacks[0]
    of_layer = [
        [weights[name] for place, name in names.items() if place.startswith(f"{path}.{i}.")] for i in range(count)
    ]

    for i, layer in enumerate(layers):

        def ahead(*_: Any, following: int = (i + 1) % count) -> None:
            for weight in of_layer[following]:
                weight.prefetch()

        def done(*_: Any, this: int = i) -> None:
            for weight in of_layer[this]:
                weight.release()

        layer.register_forward_pre_hook(ahead)
        layer.register_forward_hook(done)
