"""The shapes of a model's linear maps, read from its folder without torch, for planning."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.formats.safetensors_io import TensorEntry, trusted_header
from pocketllm.engine.streamed.families import is_of_llamas_kind

#: Bytes of a number.
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
#: A layer's weights up to this size stay dense for all micro-batches (pocketllm.backprop).
DENSE_LAYER_BYTES = 16 * 2**20
#: Parts of the names of embedding tables (tokens, positions, token types), which are no linear maps.
_TABLES = ("embed", "wte", "wpe")


@dataclass(kw_only=True)
class Shapes:
    """A model's shapes, in elements unless named otherwise; fixed once it is made."""

    name: str  #: of the model
    is_mlm: bool
    dtype: str  #: of the weights on disk
    compute_dtype: str
    linears: dict[str, tuple[int, int]]  #: path -> (out, in) of each linear map but the output head
    head: tuple[int, int]  #: (vocabulary, width)
    layer_bytes: int  #: of the largest layer on disk
    weights_bytes: int  #: of everything on disk
    calibration: dict[str, Any]
    tokenizer_bytes: int = 0  #: of its file
    family: str | None = "llama"  #: one of LLAMA_FAMILIES; None: its layers are of another kind

    def __post_init__(self) -> None:
        sizes, itemsize = [out * inputs for out, inputs in self.linears.values()], ITEMSIZE[self.compute_dtype]
        inputs = [inputs for _, inputs in self.linears.values()]
        layers = [(layer, path, out) for path, (out, _) in self.linears.items() if (layer := layer_of(path))]
        #: Whether products need dense copies of the weights.
        self.packed = self.dtype != self.compute_dtype
        #: The number of weights of all linear maps, and of the largest one.
        self.multiplied, self.largest = sum(sizes), max(sizes, default=0)
        #: The number of layers, and the sum of the output widths of a layer's linear maps.
        self.layers = len({layer for layer, *_ in layers})
        self.layer_outputs = sum(out for *_, out in layers) // max(1, self.layers)
        #: Resident pages of the weights file: a layer; or one matrix, if products use a copy.
        self.window_bytes = self.layer_bytes
        if self.dtype not in ITEMSIZE:
            self.window_bytes = self.layer_bytes * self.layers * self.largest // max(1, self.multiplied)
        #: The hidden width: the input width of most linear maps.
        self.hidden = max(inputs, key=lambda width: (inputs.count(width), width), default=self.head[1])
        #: The widest output of a linear map; and how many tensors of that width exist at once: a map's output, its
        #: activation, and a gate.
        self.widest = max((out for out, _ in self.linears.values()), default=self.head[1])
        widest = Counter(layer_of(path) for path, (out, _) in self.linears.items() if out == self.widest)
        self.widest_at_once = 1 + max(widest.values(), default=1)
        #: Activations of one position in a layer: the hidden state, its normalised copies and the residual; and the
        #: widest outputs.
        self.position_bytes = (4 * itemsize + 4) * self.hidden + itemsize * self.widest_at_once * self.widest
        #: The activations of one position in a layer of Llama's kind (backprop/llama_layer.py): the outputs of all maps
        #: but the last, as bfloat16; and what two more norms are of. 0 of another kind.
        more = self.hidden if self.family == "gemma3_text" else -self.hidden
        self.kept_bytes = 2 * (self.layer_outputs + more) if self.family else 0


def read_shapes(model_folder: ModelFolder) -> Shapes:
    """The shapes of an imported model. Raises ModelFileError when its files are broken or gone."""
    try:
        config = json.loads((model_folder.path / "config.json").read_bytes())
        vocabulary = int(config["vocab_size"])
        entries = trusted_header(model_folder.weights)
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"The model in {model_folder.path} cannot be read ({type(error).__name__}: {error}). Import it again."
        raise ModelFileError(message) from error
    linears, head = {}, (vocabulary, 1)
    layers = Counter[str]()
    for name, entry in entries.items():
        layer, shape = layer_of(name), _dense_shape(entry)
        if layer is not None:
            layers[layer] += entry.nbytes
        if len(shape) != 2 or not name.endswith(".weight"):
            continue
        if layer is None and shape[0] == vocabulary:
            head = (vocabulary, shape[1])
        elif not any(table in name for table in _TABLES):
            linears[name.removesuffix(".weight")] = (shape[0], shape[1])
    manifest = model_folder.manifest
    return Shapes(
        name=manifest.name,
        is_mlm=manifest.is_mlm,
        dtype=manifest.dtype,
        compute_dtype=manifest.compute_dtype,
        linears=linears,
        head=head,
        layer_bytes=max(layers.values(), default=0),
        weights_bytes=manifest.weights_bytes,
        calibration=manifest.calibration or {},
        tokenizer_bytes=(file := model_folder.path / "tokenizer.json").exists() and file.stat().st_size,
        family=config["model_type"] if is_of_llamas_kind(config.get) else None,
    )


def adapted(shapes: Shapes, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The linear maps with these names: path -> (out, in)."""
    return {path: shape for path, shape in shapes.linears.items() if path.rpartition(".")[2] in targets}


def layer_of(name: str) -> str | None:
    """The path up to the layer's number, such as "model.layers.3"; None outside the layers."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else None


def _dense_shape(entry: TensorEntry) -> tuple[int, ...]:
    """The shape of a weight, from its tensor or its codes: a byte holds two 4-bit codes."""
    return (entry.shape[0], 2 * entry.shape[1]) if entry.dtype == "uint8" and len(entry.shape) == 2 else entry.shape
