"""All of a model's weights as trained parameters: full-parameter MeZO, the paper's own setting.

The weights are in memory in their stored dtype and change only in an update; perturbed values are computed beside them,
a matrix at a time (streamed/modules.py). In half precision an update is smaller than the spacing of the numbers and
would be rounded away, so updates use stochastic rounding, which is unbiased. Its random bits follow from seed and step.

Perturbed values are rounded to nearest. Norm gains are near 1, where bfloat16's spacing is 2^-7 and a perturbation is
1e-3, so perturbed norms compute in float32. Any other weight above 0.5 is the same on both sides of a probe in
bfloat16: its updates are noise. Matrices and biases have few such weights.
"""

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from pocketllm.engine.formats.atomic import atomic
from pocketllm.engine.formats.model_folder import MANIFEST_NAME, WEIGHTS_NAME, ModelFolder
from pocketllm.engine.formats.safetensors_io import read_rows, trusted_header, write_safetensors
from pocketllm.engine.noise import ROUNDING_POOL, Direction, rounding_bits

#: How many more bits float32 has than the dtype.
_LOST_BITS = {torch.bfloat16: 16, torch.float16: 13}
#: float16's smallest normal number.
_MIN_FLOAT16 = 2.0**-14
#: Rows of a weight that are read at a time.
_ROWS = 1024


@dataclass(frozen=True)
class FullWeights:
    """Every weight by name; the order numbers them in the noise."""

    tensors: dict[str, torch.Tensor]

    def reload(self, path: Path) -> None:
        """Reset the tensors, in place, to those of this weights file."""
        entries = trusted_header(path)
        for name, tensor in self.tensors.items():
            for part, rows in zip(tensor.split(_ROWS), read_rows(path, entries[name], _ROWS), strict=True):
                part.copy_(rows)

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each tensor in the noise."""
        return {name: number for number, name in enumerate(self.tensors)}

    def add_scaled(self, direction: Direction, distance: float) -> None:
        """theta <- theta + distance * z, in place."""
        for number, tensor in enumerate(self.tensors.values()):
            _add_scaled(tensor, number, direction, distance)


def _add_scaled(tensor: torch.Tensor, number: int, direction: Direction, distance: float) -> None:
    flat = tensor.view(-1)
    shape = (flat.numel(),)
    for start in range(0, flat.numel(), ROUNDING_POOL):
        part = flat[start : start + ROUNDING_POOL]
        if part.dtype not in _LOST_BITS:
            z = direction.rows(number, shape, start, start + len(part), part.dtype)
            part.add_(z, alpha=distance)
            continue
        z = direction.rows(number, shape, start, start + len(part))
        bits = rounding_bits(direction.seed, direction.step, direction.probe)[: len(part)]
        part.copy_(_rounded(part.float().add_(z, alpha=distance), bits, part.dtype))


def _rounded(numbers: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float32 numbers stochastically to the precision of `dtype`; changes `numbers`.

    Adding random bits below the last kept one and truncating rounds up with a probability equal to the fraction.
    """
    lost = _LOST_BITS[dtype]
    pattern = numbers.view(torch.int32)
    raised = None
    if dtype == torch.float16:
        # Subnormal numbers have the spacing of the smallest normal ones, so they are rounded there.
        raised = (numbers.abs() < _MIN_FLOAT16).float().mul_(_MIN_FLOAT16).copysign_(numbers)
        numbers.add_(raised)
    pattern.add_(bits if lost == 16 else bits >> (16 - lost)).bitwise_and_(-(1 << lost))
    return numbers if raised is None else numbers.sub_(raised)


def save_full(model_folder: ModelFolder, trainable: FullWeights, folder: Path, *, created_at: datetime) -> None:
    """Write the trained weights as a model folder, atomically; replaces what is there.

    model_folder: the model that they were loaded from; its config and tokenizer are copied.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic(folder) as scratch:
        shutil.copytree(model_folder.path, scratch, ignore=shutil.ignore_patterns(WEIGHTS_NAME, MANIFEST_NAME))
        tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in trainable.tensors.items()]
        nbytes, sha256 = write_safetensors(scratch / WEIGHTS_NAME, tensors, trainable.tensors.values())
        written = {"weights_bytes": nbytes, "weights_sha256": sha256, "created_at": created_at}
        manifest = model_folder.manifest.model_copy(
            update={"name": folder.name, "source": model_folder.manifest.name, **written}
        )
        (scratch / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
