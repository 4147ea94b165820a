"""An adapter's folder, for the daemon's process: without torch, and without loading tensors.

The format is PEFT's: adapter_config.json and adapter_model.safetensors. engine/params/lora.py writes and loads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pocketllm.engine.errors import AdapterError, ModelFileError
from pocketllm.engine.formats.safetensors_io import parse_header, read_header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
#: In the metadata of the weights file: the hash of the base model's weights.
BASE_SHA256 = "base_weights_sha256"
_PREFIX = "base_model.model."
#: Settings of PEFT by which an adapter is more than LoRA, or scaled in another way.
_MORE = ("use_dora", "use_rslora", "lora_bias", "alpha_pattern", "modules_to_save", "alora_invocation_tokens")
#: The most bytes of a config; the largest rank, as of the setting training.rank, which bounds the weights' size.
_CONFIG_BYTES, MAX_RANK = 2**20, 256


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The contents of adapter_config.json."""

    base: str  #: name of the base model
    alpha: float
    rank: int  #: the scaling of all modules is alpha / rank
    paths: tuple[str, ...]  #: of the adapted linear modules, in model order


def name_of_a(path: str) -> str:
    """The name of a module's A in the weights file."""
    return f"{_PREFIX}{path}.lora_A.weight"


def name_of_b(path: str) -> str:
    """The name of a module's B in the weights file."""
    return f"{_PREFIX}{path}.lora_B.weight"


def read_config(folder: Path) -> AdapterConfig:
    """Read a PEFT LoRA folder's config. Raises AdapterError, which names the folder and what is wrong with it."""
    try:
        with (folder / CONFIG_NAME).open("rb") as file:
            config = json.loads(file.read(_CONFIG_BYTES))
        found = AdapterConfig(
            base=str(config["base_model_name_or_path"]),
            alpha=float(config["lora_alpha"]),
            rank=int(config["r"]),
            paths=tuple(config["target_modules"]),
        )
        if config["peft_type"] != "LORA":
            raise AdapterError(f"{folder} holds a {config['peft_type']} adapter; only LORA is supported.")
        if more := list(filter(config.get, _MORE)):
            raise AdapterError(f"{folder} was trained with {more[0]}; only plain LORA is supported.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise AdapterError(f"The adapter in {folder} cannot be read: {error}. Train a new one.") from error
    return found


def fitting_paths(folder: Path, linears: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """The modules that an adapter from elsewhere adapts, by its tensors' names: PEFT's config may hold patterns.

    linears: the model's, path -> (out, in). Raises AdapterError where it is not an adapter of these. Trusts nothing.
    """
    if not all((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME)):
        raise AdapterError(f"{folder} has no {CONFIG_NAME} or no {WEIGHTS_NAME}. Pickles are not read.")
    config = read_config(folder)
    try:
        entries = read_header(folder / WEIGHTS_NAME)
    except (OSError, ModelFileError) as error:
        raise AdapterError(f"The adapter in {folder} cannot be read: {error}") from error
    paths = tuple(path for path in linears if name_of_a(path) in entries)
    shapes = {name_of_a(path): (config.rank, linears[path][1]) for path in paths}
    shapes |= {name_of_b(path): (linears[path][0], config.rank) for path in paths}
    for key, shape in sorted({key: one.shape for key, one in entries.items()}.items() ^ shapes.items()):
        raise AdapterError(f"{folder} does not fit the model: {key} {shape} is only in one of them.")
    if not (paths and 1 <= config.rank <= MAX_RANK and isfinite(config.alpha)):
        raise AdapterError(f"{folder} has rank {config.rank} and alpha {config.alpha}. Ranks go to {MAX_RANK}.")
    return paths


def base_sha256(folder: Path) -> str | None:
    """The hash of the weights that an adapter was trained on; None where it does not say, as of older versions."""
    try:
        found: str = parse_header(folder / WEIGHTS_NAME)[1]["__metadata__"][BASE_SHA256]
        return found
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
