"""The tensors that a model consists of."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.architectures import auto_class
from pocketllm.engine.formats.quantization import packable, packed_parts
from pocketllm.engine.formats.safetensors_io import ALIGNMENT_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: How much of a tensor is in memory at a time, as 32-bit floats.
CHUNK_BYTES = 4 << 20
_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Need:
    """One tensor of the model, and how it is stored."""

    name: str  #: in the model's state_dict
    aliases: tuple[str, ...]  #: names of tensors tied to it; a file may use one of these
    shape: tuple[int, ...]
    dtype: torch.dtype  #: of the stored tensor, unless it is packed
    packing: str | None = None  #: one of quantization.PACKINGS

    @property
    def parts(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of the stored tensors; the one with its own name comes first."""
        if self.packing:
            return packed_parts(self.name, self.shape, self.packing)
        return [(self.name, self.shape, self.dtype)]

    @property
    def part_bytes(self) -> list[int]:
        """The stored size of each part."""
        return [math.prod(shape) * dtype.itemsize for _, shape, dtype in self.parts]

    @property
    def nbytes(self) -> int:
        """The stored size."""
        return sum(self.part_bytes)


def build_empty(config: PreTrainedConfig, path: Path, tensor_count: int) -> PreTrainedModel:
    """Return the language model of `config` without memory for its weights (on the meta device).

    path: of the source; tensor_count: in its files.

    Raises UnsupportedModel when transformers has no such model or it is for another task, and ModelFileError when
    the config does not fit the source's tensors.
    """
    layers = getattr(config, "num_hidden_layers", None)
    # Checked first: a wrong count would build modules until memory runs out.
    if isinstance(layers, int) and layers > tensor_count:
        raise ModelFileError(f"{path} claims {layers} layers but holds {tensor_count} tensors. Get the file again.")
    try:
        build: Callable[..., PreTrainedModel] = auto_class(config).from_config
        with torch.device("meta"):
            return build(config, trust_remote_code=False)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{path} cannot be imported. {error}") from error
    except Exception as error:  # a wrong value may fail anywhere in a model's constructor
        raise UnsupportedModel(
            f"transformers cannot build a language model of type {config.model_type!r} from {path}: "
            f"{first_line(error)}. Choose another model."
        ) from error


def list_needs(model: PreTrainedModel, dtype: torch.dtype, packing: str | None) -> list[Need]:
    """Return the tensors of `model` in the order in which they are stored; of tied tensors only the first.

    Floating-point tensors are stored in `dtype`, or packed where `packing` fits their shape. Tensors whose length is
    not a multiple of the alignment come last, so that all others are aligned. Raises UnsupportedModel when no tensor
    can be packed.
    """
    tied: dict[str, str] = model.all_tied_weights_keys
    packings = _choose_packings(model, packing) if packing else {}
    needs = [
        Need(
            name=name,
            aliases=tuple(alias for alias, original in tied.items() if original == name),
            shape=tuple(tensor.shape),
            dtype=dtype if tensor.is_floating_point() else tensor.dtype,
            packing=packings.get(name),
        )
        for name, tensor in model.state_dict().items()
        if name not in tied
    ]
    if packing and not any(need.packing for need in needs):
        raise UnsupportedModel(
            f"This {type(model).__name__} has no weights of a shape that {packing} can pack. Import it as bfloat16."
        )
    return sorted(needs, key=_storage_order)


def _choose_packings(model: PreTrainedModel, packing: str) -> dict[str, str]:
    """Name of each weight to pack -> its packing: that of the linear maps, and int8 for embeddings and output head."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    packings = {}
    for path, module in model.named_modules():
        is_embedding = any(module is one for one in embeddings)
        if not is_embedding and not isinstance(module, torch.nn.Linear):
            continue
        # int8 for embeddings: they are used row by row, so rounding errors do not average out.
        finer = "int8" if is_embedding else packing
        if packable(module.get_parameter("weight").shape, finer):
            packings[f"{path}.weight"] = finer
    return packings


def _storage_order(need: Need) -> tuple[bool, int]:
    """Aligned tensors first. Among the others wide numbers come first, so that none is at an odd address."""
    odd = any(nbytes % ALIGNMENT_BYTES for nbytes in need.part_bytes)
    return odd, -max(dtype.itemsize for _, _, dtype in need.parts)


def refuse_mismatch(path: Path, missing: Collection[str], misshapen: Collection[str]) -> None:
    """Raise ModelFileError when anything is missing or misshapen, naming the first few."""
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} missing ({_some(missing)})")
    if misshapen:
        complaints.append(f"{len(misshapen)} of another shape ({_some(misshapen)})")
    if complaints:
        raise ModelFileError(
            f"{path} does not hold the tensors that its config requires: {', '.join(complaints)}. "
            "Get the file again, or choose another model."
        )


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """How many rows of a tensor of `shape` to handle at a time; at least one."""
    return max(1, CHUNK_BYTES // max(1, 4 * math.prod(shape[1:])))


def library_error(path: Path, what: str, error: Exception) -> ModelFileError:
    """Convert a library's exception to a ModelFileError. what: the part of the file that it was reading."""
    return ModelFileError(f"{what} of {path} cannot be read: {first_line(error)}. Get the file again.")


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = ", ..." if len(listed) > _NAMES_SHOWN else ""
    return ", ".join(listed[:_NAMES_SHOWN]) + more


def first_line(error: Exception) -> str:
    """The type and the first line of a library's exception, for use in a sentence."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0].rstrip('.')}" if text else type(error).__name__
