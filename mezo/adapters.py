"""Low-rank adapters (LoRA, arXiv 2106.09685) in PEFT's format: A is frozen, B is trained, both fp32.

An adapter for a linear map W (out x in) adds scaling * B A with A (rank x in), B (out x rank). With A frozen
the loss's curvature is only probed in B, which needs no step size of its own for A (MobiZO, arXiv 2409.15520).
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pocketllm.mezo.errors import AdapterError
from pocketllm.mezo.noise import Z
from pocketllm.mezo.tensor_file import sync

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(kw_only=True)
class Adapter:
    """A set of low-rank factors, keyed by the path of the linear module that they adapt, in model order."""

    base: str  #: name of the base model
    alpha: float
    a: dict[str, torch.Tensor]  #: module path -> (rank, in), fp32, frozen
    b: dict[str, torch.Tensor]  #: module path -> (out, rank), fp32, trained
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The number of rows of the first A, which most others share."""
        return next(iter(self.a.values())).shape[0]

    @property
    def scaling(self) -> float:
        """What each product B A is multiplied with: alpha / rank."""
        return self.alpha / self.rank

    def move(self, direction: Z, distance: float) -> None:
        """B <- B + distance * z, in place; the order of the modules numbers them in the noise."""
        for number, b in enumerate(self.b.values()):
            b.add_(direction.of(number, b.shape), alpha=distance)

    def save(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, whole or not at all; replaces what is there."""
        scratch = folder.with_name(f".{folder.name}.writing")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, mode=0o700)
        _write(scratch / WEIGHTS_NAME, save(self._tensors(), metadata={"format": "pt", **self.metadata}))
        _write(scratch / CONFIG_NAME, json.dumps(self._config(), indent=2).encode())
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        sync(folder.parent)

    def _tensors(self) -> dict[str, torch.Tensor]:
        pairs = [(f"{path}.lora_A.weight", a) for path, a in self.a.items()]
        pairs += [(f"{path}.lora_B.weight", b) for path, b in self.b.items()]
        return {_PREFIX + name: tensor.contiguous() for name, tensor in pairs}

    def _config(self) -> dict[str, object]:
        others = {path: a.shape[0] for path, a in self.a.items() if a.shape[0] != self.rank}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": others,
            "alpha_pattern": {path: self.scaling * rank for path, rank in others.items()},
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            # Whole paths, not suffixes: exactly the modules that were adapted.
            "target_modules": list(self.a),
        }


def load_adapter(folder: Path) -> Adapter:
    """Read a PEFT LoRA folder. Raises AdapterError, which names the folder and what is wrong with it."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_NAME)
        alpha, base = float(config["lora_alpha"]), str(config["base_model_name_or_path"])
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        if any(alphas.get(path, alpha) * config["r"] != alpha * rank for path, rank in ranks.items()):
            raise AdapterError(f"The adapter in {folder} scales its maps differently. Train a new one.")
        if config["peft_type"] != "LORA":
            raise AdapterError(f"{folder} holds a {config['peft_type']} adapter; only LORA can be used.")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise AdapterError(f"The adapter in {folder} cannot be read: {error}. Train a new one.") from error
    # safetensors gives names sorted; the config keeps the model's order, which numbers the tensors.
    paths = config["target_modules"]
    try:
        a = {path: tensors.pop(f"{_PREFIX}{path}.lora_A.weight").float() for path in paths}
        b = {path: tensors.pop(f"{_PREFIX}{path}.lora_B.weight").float() for path in paths}
    except KeyError as error:
        raise AdapterError(f"The adapter in {folder} has no tensor {error}. Train a new one.") from error
    if tensors or not a:
        raise AdapterError(f"The adapter in {folder} does not hold what its config says. Train a new one.")
    return Adapter(base=base, alpha=alpha, a=a, b=b)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
