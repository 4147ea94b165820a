"""Low-rank adapters (LoRA, arXiv 2106.09685) in PEFT's format, fp32.

An adapter of a linear map W (out x in) adds scaling * B A with A (rank x in), B (out x rank). MeZO trains B only, so A
needs no step size of its own (MobiZO, arXiv 2409.15520); exact gradients train both.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pocketllm.engine.errors import AdapterError
from pocketllm.engine.formats.atomic import atomic
from pocketllm.engine.formats.lora_folder import CONFIG_NAME, WEIGHTS_NAME, name_of_a, name_of_b, read_config
from pocketllm.engine.formats.safetensors_io import write_tensors
from pocketllm.engine.noise import Direction

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "Adapter", "load_adapter"]


@dataclass(kw_only=True)
class Adapter:
    """Low-rank factors, keyed by the path of the linear module that they adapt, in model order."""

    base: str  #: name of the base model
    alpha: float
    a: dict[str, torch.Tensor]  #: module path -> (rank, in), fp32
    b: dict[str, torch.Tensor]  #: module path -> (out, rank), fp32
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The number of rows of each A."""
        return next(iter(self.a.values())).shape[0]

    @property
    def scaling(self) -> float:
        """The factor on each product B A: alpha / rank."""
        return self.alpha / self.rank

    def add_scaled(self, direction: Direction, distance: float) -> None:
        """B <- B + distance * z, in place; a module's index is its tensor number in the noise."""
        for number, b in enumerate(self.b.values()):
            b.add_(direction.of(number, b.shape), alpha=distance)

    def save(self, folder: Path, *, is_mlm: bool = False) -> None:
        """Write the adapter as a PEFT folder, atomically; replaces what is there.

        is_mlm: the base is a masked language model, for which PEFT has no task type.
        """
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic(folder) as scratch:
            scratch.mkdir(mode=0o700)
            tensors = {name_of_a(path): a for path, a in self.a.items()}
            tensors |= {name_of_b(path): b for path, b in self.b.items()}
            write_tensors(scratch / WEIGHTS_NAME, tensors, self.metadata)
            (scratch / CONFIG_NAME).write_text(json.dumps(self._config(is_mlm), indent=2), encoding="utf-8")

    def _config(self, is_mlm: bool) -> dict[str, object]:
        return {
            "peft_type": "LORA",
            "task_type": None if is_mlm else "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            # Full paths, not suffixes, so that PEFT adapts exactly these modules.
            "target_modules": list(self.a),
        }


def load_adapter(folder: Path, paths: Sequence[str] = ()) -> Adapter:
    """Read a PEFT LoRA folder. Raises AdapterError, which names the folder and what is wrong with it.

    paths: of the modules that it adapts, if its config does not say it: see `fitting_paths`.
    """
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"The adapter in {folder} cannot be read: {error}. Train a new one.") from error
    # safetensors sorts the names; the config has the model's order, which numbers the tensors in the noise.
    try:
        a = {path: tensors.pop(name_of_a(path)).float() for path in paths or config.paths}
        b = {path: tensors.pop(name_of_b(path)).float() for path in paths or config.paths}
    except KeyError as error:
        raise AdapterError(f"The adapter in {folder} has no tensor {error}. Train a new one.") from error
    if not all(tensor.isfinite().all() for tensor in (*a.values(), *b.values())):
        raise AdapterError(f"The adapter in {folder} holds values that are no numbers. Train a new one.")
    if tensors or not a:
        raise AdapterError(f"The adapter in {folder} does not match its config. Train a new one.")
    return Adapter(base=config.base, alpha=config.alpha, a=a, b=b)
