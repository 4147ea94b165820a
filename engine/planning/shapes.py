"""The shapes of a model's linear maps, read from its folder without torch, for planning."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.formats.safetensors_io import TensorEntry, trusted_header

#: Bytes of a number.
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
#: A layer's weights up to this size stay dense for all micro-batches (pocketllm.backprop).
DENSE_LAYER_BYTES = 16 * 2**20
#: Linear maps with the same input as another one of their layer: the activation PCA keeps one sketch for both.
_SAME_INPUT_AS = {"k_proj": "q_proj", "v_proj": "q_proj", "key": "query", "value": "query", "up_proj": "gate_proj"}
#: The linear maps of a layer of Llama's kind.
LLAMA_MAPS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
#: Parts of the names of embedding tables (tokens, positions, token types), which are no linear maps.
_TABLES = ("embed", "wte", "wpe")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model's shapes, in elements unless named otherwise."""

    name: str  #: of the model
    is_mlm: bool
    dtype: str  #: of the weights on disk
    compute_dtype: str
    linears: dict[str, tuple[int, int]]  #: path -> (out, in) of each linear map but the output head
    head: tuple[int, int]  #: (vocabulary, width)
    layer_bytes: int  #: of the largest layer on disk
    weights_bytes: int  #: of everything on disk
    calibration: dict[str, Any]

    @property
    def packed(self) -> bool:
        """Whether products need dense copies of the weights."""
        return self.dtype != self.compute_dtype

    @property
    def window_bytes(self) -> int:
        """Resident pages of the weights file: a layer; or one matrix, if products use a copy."""
        if self.dtype in ITEMSIZE:
            return self.layer_bytes
        return self.layer_bytes * self.layers * self.largest // max(1, self.multiplied)

    @property
    def hidden(self) -> int:
        """The hidden width: the input width of most linear maps."""
        inputs = [inputs for _, inputs in self.linears.values()]
        return max(inputs, key=lambda width: (inputs.count(width), width), default=self.head[1])

    @property
    def widest(self) -> int:
        """The widest output of a linear map."""
        return max((out for out, _ in self.linears.values()), default=self.head[1])

    @property
    def widest_at_once(self) -> int:
        """How many tensors of width `widest` exist at once: a map's output, its activation, and a gate."""
        layers = Counter(layer_of(path) for path, (out, _) in self.linears.items() if out == self.widest)
        return 1 + max(layers.values(), default=1)

    @property
    def position_bytes(self) -> int:
        """Activations of one position in a layer: the hidden state, its normalised copies and the residual; and the
        widest outputs.
        """
        size = ITEMSIZE[self.compute_dtype]
        return (4 * size + 4) * self.hidden + size * self.widest_at_once * self.widest

    @property
    def largest(self) -> int:
        """The number of weights of the largest linear map."""
        return max((out * inputs for out, inputs in self.linears.values()), default=0)

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len({layer_of(path) for path in self.linears} - {None})

    @property
    def layer_outputs(self) -> int:
        """The sum of the output widths of a layer's linear maps."""
        return sum(out for path, (out, _) in self.linears.items() if layer_of(path)) // max(1, self.layers)

    @property
    def kept_bytes(self) -> int:
        """The activations of one position in a layer of Llama's kind (backprop/llama_layer.py); 0 of another kind.

        They are the outputs of all maps but the last, as bfloat16.
        """
        outputs = {path.rpartition(".")[2]: out for path, (out, _) in self.linears.items() if layer_of(path)}
        last = outputs.get("down_proj", 0)
        return 2 * (self.layer_outputs - last) if outputs.keys() == LLAMA_MAPS else 0

    @property
    def multiplied(self) -> int:
        """The number of weights of all linear maps."""
        return sum(out * inputs for out, inputs in self.linears.values())


def read_shapes(model_folder: ModelFolder) -> Shapes:
    """The shapes of an imported model. Raises ModelFileError when its files are broken or gone."""
    entries, vocabulary = _read(model_folder)
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
    )


def adapted(shapes: Shapes, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The linear maps with these names: path -> (out, in)."""
    return {path: shape for path, shape in shapes.linears.items() if path.rpartition(".")[2] in targets}


def distinct_inputs(shapes: Shapes, targets: Sequence[str]) -> list[int]:
    """The width of each distinct input of these linear maps; queries, keys and values share one."""
    widths = {}
    for path, (_, width) in adapted(shapes, targets).items():
        block, _, name = path.rpartition(".")
        widths[block, _SAME_INPUT_AS.get(name, name)] = width
    return list(widths.values())


def layer_of(name: str) -> str | None:
    """The path up to the layer's number, such as "model.layers.3"; None outside the layers."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else None


def _read(model_folder: ModelFolder) -> tuple[dict[str, TensorEntry], int]:
    """The entries of the weights file, and the size of the vocabulary."""
    try:
        vocabulary = json.loads((model_folder.path / "config.json").read_bytes())["vocab_size"]
        return trusted_header(model_folder.weights), int(vocabulary)
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"The model in {model_folder.path} cannot be read ({type(error).__name__}: {error}). Import it again."
        raise ModelFileError(message) from error


def _dense_shape(entry: TensorEntry) -> tuple[int, ...]:
    """The shape of a weight, from its tensor or its codes: a byte holds two 4-bit codes."""
    return (entry.shape[0], 2 * entry.shape[1]) if entry.dtype == "uint8" and len(entry.shape) == 2 else entry.shape
