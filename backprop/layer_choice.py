"""Chooses how each layer is differentiated: by hand where its kind is known and a trial agrees, else by autograd."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch

from pocketllm.backprop.graph_layer import GraphLayer
from pocketllm.backprop.llama_layer import LlamaLayer
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import UnsupportedModel
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.shapes import DENSE_LAYER_BYTES
from pocketllm.engine.streamed.families import LLAMA_MAPS, is_of_llamas_kind
from pocketllm.engine.streamed.layers import LayerCall
from pocketllm.engine.streamed.model import LanguageModel

#: Allowed relative difference: between what leaves the last layer by way of the single layers and by the model's own
#: code; and, in fp32, between what a layer adds by hand and by its own code.
_TOLERANCE, _BY_HAND_TOLERANCE = 0.02, 1e-3

Layer = GraphLayer | LlamaLayer


@torch.no_grad()
def choose_layers(model: LanguageModel, adapter: Adapter) -> list[Layer]:
    """The model's layers, from the bottom up, each tried on three words. `adapter` is the model's current parameters.

    Raises UnsupportedModel if the layers pass on more than hidden states, or the adapter is not of the layers alone.
    """
    paths: dict[int, list[str]] = defaultdict(list)
    for path in adapter.a:
        number = model.stack.number_of(path)
        if number is None:
            raise UnsupportedModel(f"{path} is in none of the model's layers. Use training.method = mezo.")
        paths[number].append(path)
    words = torch.tensor([[1, 2, 3]]).remainder(model.head.at(None).vocabulary)
    blocks = Batch(inputs=words, targets=words)
    expected = model.hidden(blocks).float()
    layers: list[Layer] = []
    hidden, calls = model.layer_calls(blocks)
    for number, call in enumerate(calls):
        layer = GraphLayer(model, number, paths[number], adapter)
        layers.append(_by_hand(model, number, layer.paths, adapter, hidden, call) or layer)
        hidden = _output(model, number, layer, hidden, call)
    difference = float((model.behind_layers(blocks, hidden).float() - expected).norm())
    # Where the model itself overflows on these words, as in fp16, a step will tell.
    if expected.isfinite().all() and not difference <= _TOLERANCE * float(expected.norm()):
        raise UnsupportedModel(
            "The model's layers pass more to each other than hidden states. Use training.method = mezo."
        )
    return layers


def _by_hand(
    model: LanguageModel, number: int, paths: Sequence[str], adapter: Adapter, x: torch.Tensor, call: LayerCall
) -> LlamaLayer | None:
    """The layer by hand; None if it is of another kind, has maps without adapters, or adds something else to x."""
    if not is_of_llamas_kind(partial(getattr, model.network.config)) or len(paths) < len(LLAMA_MAPS):
        return None
    stack, context = model.stack, model.context
    by_hand = LlamaLayer(stack.layers[number], f"{stack.path}.{number}", adapter)
    dtype = context.dtype
    context.dtype = torch.promote_types(dtype, torch.float32)
    try:
        x = x.to(context.dtype)
        expected = _output(model, number, GraphLayer(model, number, paths, adapter), x, call) - x
        found = _output(model, number, by_hand, x, call) - x
    finally:
        context.dtype = dtype
    agrees = float((found - expected).norm()) <= _BY_HAND_TOLERANCE * float(expected.norm())
    return by_hand if agrees else None


def _output(model: LanguageModel, number: int, layer: Layer, x: torch.Tensor, call: LayerCall) -> torch.Tensor:
    with model.stack.held(number, number + 1, DENSE_LAYER_BYTES):
        layer.load()
        return layer.forward(x, call)
