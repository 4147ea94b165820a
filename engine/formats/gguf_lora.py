"""An adapter as a GGUF LoRA file, which llama.cpp puts on the base model's GGUF file (--lora).

A file holds A and B of each map as NAME.weight.lora_a (rank x in) and NAME.weight.lora_b (out x rank), and llama.cpp
adds alpha / rank * B A: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp. Nothing here imports
torch, which would take the exporting process most of its time and memory.
"""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pocketllm.engine.errors import AdapterError, CannotExport, ModelFileError
from pocketllm.engine.formats.atomic import atomic
from pocketllm.engine.formats.lora_folder import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterConfig,
    name_of_a,
    name_of_b,
    read_config,
)
from pocketllm.engine.formats.model_folder import MANIFEST_NAME, ModelFolder
from pocketllm.engine.formats.safetensors_io import trusted_header

Numbers = NDArray[np.float32]

_PAIRED = ("attn_q", "attn_k")


@dataclass(frozen=True, kw_only=True)
class _Family:
    architecture: gguf.MODEL_ARCH
    #: Whether base files have the rows of queries and keys in another order than transformers: the two numbers that
    #: a rotation mixes side by side, not half a head apart.
    paired: bool = False


#: Family in transformers -> in llama.cpp. Only those whose linear maps are the same ones in both.
_FAMILIES = {
    "llama": _Family(architecture=gguf.MODEL_ARCH.LLAMA, paired=True),
    "mistral": _Family(architecture=gguf.MODEL_ARCH.LLAMA, paired=True),
    "qwen2": _Family(architecture=gguf.MODEL_ARCH.QWEN2),
    "qwen3": _Family(architecture=gguf.MODEL_ARCH.QWEN3),
    "gemma": _Family(architecture=gguf.MODEL_ARCH.GEMMA),
    "gemma3_text": _Family(architecture=gguf.MODEL_ARCH.GEMMA3),
}


def write_gguf_lora(folder: Path, model_folder: ModelFolder, destination: Path) -> None:
    """Write the adapter in `folder`, which was trained on `model_folder`, as a GGUF LoRA file, whole or not at all.

    It goes with any GGUF file of the base model, however packed. Replaces what is at `destination`. Raises CannotExport
    when such a file cannot hold it, AdapterError when the adapter is broken, and ModelFileError when the model is.
    """
    source = LoraSource.open(folder, model_folder)
    with whole_or_nothing(destination, source) as writer:
        _describe(writer, source, folder.name)
        for path, name in source.names.items():
            writer.add_tensor(f"{name}.weight.lora_a", source.a(path))
            writer.add_tensor(f"{name}.weight.lora_b", source.b(path))


@contextmanager
def whole_or_nothing(destination: Path, source: "LoraSource", **more: Any) -> Iterator[gguf.GGUFWriter]:
    """Yield a writer of a GGUF file for the family of the adapter's model; it is there once all is written."""
    with atomic(destination) as scratch:
        writer = gguf.GGUFWriter(scratch, gguf.MODEL_ARCH_NAMES[source.family.architecture], **more)
        with closing(writer):
            yield writer
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()


@dataclass(frozen=True, kw_only=True)
class LoraSource:
    """An adapter's folder with the model that it belongs to, and what its maps are called in GGUF."""

    config: AdapterConfig
    family: _Family
    tensors: Any  #: of safetensors: reads one tensor at a time
    heads: dict[str, int]  #: of attention: end of a map's name -> how many
    names: dict[str, str]  #: path of a map -> its name in GGUF, without a suffix

    @classmethod
    def open(cls, folder: Path, model_folder: ModelFolder) -> "LoraSource":
        """Read both, and raise if the model is not one of llama.cpp's, or the adapter is broken."""
        family = _family_of(folder, model_folder)
        config = read_config(folder)
        try:
            settings = json.loads((model_folder.path / "config.json").read_bytes())
            heads = int(settings["num_attention_heads"])
            kv_heads = int(settings.get("num_key_value_heads") or heads)
            names = _names(config, family, int(settings["num_hidden_layers"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ModelFileError(
                f"The model in {model_folder.path} cannot be read ({error}). Import it again."
            ) from error
        try:
            tensors: Any = safe_open(folder / WEIGHTS_NAME, "numpy")
        except (OSError, SafetensorError) as error:
            raise AdapterError(f"The adapter in {folder} cannot be read: {error}. Train a new one.") from error
        if set(tensors.keys()) != {name(path) for path in config.paths for name in (name_of_a, name_of_b)}:
            raise AdapterError(f"The adapter in {folder} does not match its config. Train a new one.")
        of_model = trusted_header(model_folder.weights)
        for path in config.paths:  # another model may have taken the name of the adapter's
            weight, rows = of_model.get(f"{path}.weight"), tensors.get_slice(name_of_b(path)).get_shape()[0]
            if weight is None or weight.shape[0] != rows:
                raise AdapterError(f"The adapter in {folder} does not fit the model at {path}. Train a new one.")
        return cls(
            config=config, family=family, tensors=tensors, heads={"attn_q": heads, "attn_k": kv_heads}, names=names
        )

    def a(self, path: str) -> Numbers:
        """(rank, in)."""
        a: Numbers = self.tensors.get_tensor(name_of_a(path))
        return a

    def b(self, path: str) -> Numbers:
        """(out, rank), with its rows in llama.cpp's order."""
        b: Numbers = self.tensors.get_tensor(name_of_b(path))
        kind = self.names[path].rpartition(".")[2]
        return paired(b, self.heads[kind]) if self.family.paired and kind in _PAIRED else b


def paired(b: Numbers, heads: int) -> Numbers:
    """(out, rank) with the rows of each head so that those half a head apart come side by side, as llama.cpp has it."""
    return np.ascontiguousarray(b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2)).reshape(b.shape)


def _family_of(folder: Path, model_folder: ModelFolder) -> _Family:
    if not (folder / CONFIG_NAME).exists() and (folder / MANIFEST_NAME).exists():
        raise CannotExport(
            f"{folder.name} holds all weights of a model, which a GGUF LoRA file cannot. Export it as PEFT and convert "
            "the folder to a model file with llama.cpp's convert_hf_to_gguf.py."
        )
    family = _FAMILIES.get(model_folder.manifest.model_type)
    if family is None or model_folder.manifest.is_mlm:
        raise CannotExport(
            f"{model_folder.manifest.name} is a {model_folder.manifest.architecture}, but GGUF LoRA files can be made "
            f"only for {', '.join(_FAMILIES)}. Export {folder.name} as PEFT."
        )
    return family


def _names(config: AdapterConfig, family: _Family, layers: int) -> dict[str, str]:
    table = gguf.get_tensor_name_map(family.architecture, layers)
    names = {path: table.get_name(path) for path in config.paths}
    unknown = [path for path, name in names.items() if name is None]
    if unknown:
        raise CannotExport(
            f"llama.cpp has no tensor for {unknown[0]} in models of architecture "
            f"{gguf.MODEL_ARCH_NAMES[family.architecture]!r}. Export the adapter as PEFT, or train other maps."
        )
    return {path: str(name) for path, name in names.items()}


def _describe(writer: gguf.GGUFWriter, source: LoraSource, name: str) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, source.config.base)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, source.config.alpha)
