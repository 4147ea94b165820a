"""All of a model's weights as parameters: the paper's own setting, full-parameter MeZO.

The weights are in memory in the dtype that they are stored in, and change only at an update; the two points of a
probe are made beside them, a matrix at a time (streamed/modules.py). In half precision an update is smaller than the
distance between neighbouring numbers, and would be rounded away: it is rounded up or down at random instead,
in proportion, so that the mean over many steps is exact. The random bits follow from seed and step.

The points of a probe are rounded to nearest. A norm's gains are near 1, where bfloat16's numbers lie 2^-7 apart, and
a probe goes 1e-3 to each side: so norms compute in float32 at the points. Any other weight above 0.5 is the same at
both in bfloat16. The loss says nothing of it then, and what an update moves it by is noise; matrices and biases have
few.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.model_folder import MANIFEST_NAME, WEIGHTS_NAME, ModelFolder
from pocketllm.engine.formats.safetensors_io import SafetensorsWriter, sync
from pocketllm.engine.params.perturbation import Z
from pocketllm.engine.philox import ROUNDING_POOL
from pocketllm.engine.streamed.weights import Weight

#: Bits that float32 has behind the last one of the dtype.
_LOST_BITS = {torch.bfloat16: 16, torch.float16: 13}
#: float16's least number of full precision.
_MIN_FLOAT16 = 2.0**-14


@dataclass(frozen=True)
class FullWeights:
    """theta: every weight by its name; the order numbers them in the noise."""

    tensors: dict[str, torch.Tensor]

    @classmethod
    def load(cls, weights: Mapping[str, Weight], dtype: torch.dtype | None = None) -> "FullWeights":
        """Take these weights into memory, in `dtype` or as they are stored; whoever holds them sees them change.

        Raises BadRequest for packed ones.
        """
        packed = [name for name, weight in weights.items() if weight.packed]
        if packed:
            raise BadRequest(
                f"All weights can be trained only where they are stored as floats; {packed[0]} is packed. "
                "Import the model as bfloat16, or train an adapter (training.mode = lora)."
            )
        return cls({name: weight.load(dtype or weight.floats.dtype) for name, weight in weights.items()})

    def reload(self, weights: Mapping[str, Weight]) -> None:
        """Put back, in place, what these weights hold: those that it was loaded from."""
        for name, tensor in self.tensors.items():
            tensor.copy_(weights[name].floats)
            weights[name].release()

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each tensor in the noise."""
        return {name: number for number, name in enumerate(self.tensors)}

    def move(self, direction: Z, distance: float) -> None:
        """theta <- theta + distance * z, in place."""
        for number, tensor in enumerate(self.tensors.values()):
            _move(tensor, number, direction, distance)


def _move(tensor: torch.Tensor, number: int, direction: Z, distance: float) -> None:
    flat = tensor.view(-1)
    shape = (flat.numel(),)
    for start in range(0, flat.numel(), ROUNDING_POOL):
        part = flat[start : start + ROUNDING_POOL]
        if part.dtype not in _LOST_BITS:
            z = direction.rows(number, shape, start, start + len(part), part.dtype)
            part.add_(z, alpha=distance)
            continue
        z = direction.rows(number, shape, start, start + len(part))
        bits = direction.rounding_bits()[: len(part)]
        part.copy_(_rounded(part.float().add_(z, alpha=distance), bits, part.dtype))


def _rounded(numbers: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 numbers with the bits that `dtype` has no room for rounded up or down at random; changes `numbers`.

    Adding a random number below the last kept bit, then cutting, rounds up as often as the fraction is large.
    """
    lost = _LOST_BITS[dtype]
    pattern = numbers.view(torch.int32)
    raised = None
    if dtype == torch.float16:
        # Below its least normal number its neighbours lie as far apart as right above: there they are rounded.
        raised = (numbers.abs() < _MIN_FLOAT16).float().mul_(_MIN_FLOAT16).copysign_(numbers)
        numbers.add_(raised)
    pattern.add_(bits if lost == 16 else bits >> (16 - lost)).bitwise_and_(-(1 << lost))
    return numbers if raised is None else numbers.sub_(raised)


def save_full(model_folder: ModelFolder, theta: FullWeights, folder: Path, *, created_at: datetime) -> None:
    """Write the trained weights as a model folder of their own, whole or not at all; replaces what is there.

    model_folder: the model that they were loaded from, whose config and tokenizer go along.
    """
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(model_folder.path, scratch, ignore=shutil.ignore_patterns(WEIGHTS_NAME, MANIFEST_NAME))
    tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in theta.tensors.items()]
    with SafetensorsWriter(scratch / WEIGHTS_NAME, tensors) as writer:
        for name, tensor in theta.tensors.items():
            writer.write(name, tensor)
    manifest = replace(
        model_folder.manifest,
        name=folder.name,
        source=model_folder.manifest.name,
        weights_bytes=writer.nbytes,
        weights_sha256=writer.sha256,
        created_at=created_at,
    )
    (scratch / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    for file in scratch.iterdir():
        sync(file)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    sync(folder.parent)
