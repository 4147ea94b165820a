"""An adapter's folder, for the daemon's process: without torch, and without loading tensors.

The format is PEFT's: adapter_config.json and adapter_model.safetensors. engine/params/lora.py writes and loads it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pocketllm.engine.errors import AdapterError
from pocketllm.engine.formats.safetensors_io import parse_header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
#: In the metadata of the weights file: the hash of the base model's weights.
BASE_SHA256 = "base_weights_sha256"
_PREFIX = "base_model.model."


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
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        found = AdapterConfig(
            base=str(config["base_model_name_or_path"]),
            alpha=float(config["lora_alpha"]),
            rank=int(config["r"]),
            paths=tuple(config["target_modules"]),
        )
        if config["peft_type"] != "LORA":
            raise AdapterError(f"{folder} holds a {config['peft_type']} adapter; only LORA is supported.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"The adapter in {folder} cannot be read: {error}. Train a new one.") from error
    return found


def base_sha256(folder: Path) -> str | None:
    """The hash of the weights that an adapter was trained on; None where it does not say, as of older versions."""
    try:
        found: str = parse_header(folder / WEIGHTS_NAME)[1]["__metadata__"][BASE_SHA256]
        return found
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
