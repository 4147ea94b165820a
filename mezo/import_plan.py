"""What a model needs to be whole, and what a source of weights must be able to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from pocketllm.mezo.errors import ModelFileError, UnsupportedModel
from pocketllm.mezo.tensor_file import ALIGNMENT_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: How much of a tensor is in memory at a time, counted in 32-bit floats.
CHUNK_BYTES = 4 << 20
_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Need:
    """One tensor that the model cannot do without."""

    name: str  #: in the model's state_dict
    aliases: tuple[str, ...]  #: names of tensors tied to it, under which a file may hold it instead
    shape: tuple[int, ...]
    dtype: torch.dtype  #: in which it is stored

    @property
    def nbytes(self) -> int:
        """Its size once stored."""
        return math.prod(self.shape) * self.dtype.itemsize


class WeightSource(Protocol):
    """A model in a foreign format. Reading one never runs code that came with it."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""

    @property
    def origin(self) -> str:
        """Where the model came from, without this machine's folders."""

    @property
    def license(self) -> str:
        """The licence's name, or "unknown"."""

    @property
    def tensor_count(self) -> int:
        """How many tensors there are."""

    def config(self) -> PreTrainedConfig:
        """The model's transformers config. Raises ModelFileError or UnsupportedModel."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`. Raises ModelFileError or UnsupportedModel."""

    def match(self, model: PreTrainedModel, needs: list[Need]) -> None:
        """Find every need among the tensors. Raises ModelFileError naming those absent or misshapen."""

    def read(self, need: Need) -> Iterator[torch.Tensor]:
        """The tensor's rows, a few MB at a time, in the precision that they are found in; after `match`."""


def build_empty(config: PreTrainedConfig, source: WeightSource) -> PreTrainedModel:
    """Return the causal language model of `config` without memory for its weights (on the meta device).

    Raises UnsupportedModel when transformers has none or the config is for another task, and ModelFileError when
    the config cannot be that of the tensors at hand.
    """
    from transformers import AutoModelForCausalLM

    layers = getattr(config, "num_hidden_layers", None)
    # Checked first, since a false count would make us build modules until memory runs out.
    if isinstance(layers, int) and layers > source.tensor_count:
        raise ModelFileError(
            f"{source.path} is said to have {layers} layers but holds {source.tensor_count} tensors. "
            "Get the file again."
        )
    build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            model = build(config, trust_remote_code=False)
    except Exception as error:  # a config's values reach every line of a model's constructor
        raise UnsupportedModel(
            f"transformers cannot build a causal language model of type {config.model_type!r} from {source.path}: "
            f"{first_line(error)}. Choose another model."
        ) from error
    name = type(model).__name__
    declared = config.architectures or [name]
    if name not in declared:
        raise UnsupportedModel(
            f"{source.path} holds a {declared[0]}, not a causal language model ({name}). Choose another model."
        )
    return model


def list_needs(model: PreTrainedModel, dtype: torch.dtype) -> list[Need]:
    """Return every tensor of `model` once (of tied ones only the first), in the order in which to store them.

    Floating-point tensors are to be stored in `dtype`. Those whose length is not a multiple of the alignment
    come last, so that all the others are aligned.
    """
    tied: dict[str, str] = model.all_tied_weights_keys
    needs = [
        Need(
            name=name,
            aliases=tuple(alias for alias, original in tied.items() if original == name),
            shape=tuple(tensor.shape),
            dtype=dtype if tensor.is_floating_point() else tensor.dtype,
        )
        for name, tensor in model.state_dict().items()
        if name not in tied
    ]
    return sorted(needs, key=lambda need: (need.nbytes % ALIGNMENT_BYTES != 0, -need.dtype.itemsize))


def refuse_mismatch(path: Path, missing: Collection[str], misshapen: Collection[str]) -> None:
    """Raise ModelFileError when anything is missing or misshapen, naming the first few."""
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} missing ({_some(missing)})")
    if misshapen:
        complaints.append(f"{len(misshapen)} of another shape ({_some(misshapen)})")
    if complaints:
        raise ModelFileError(
            f"{path} does not hold the tensors that its config calls for: {', '.join(complaints)}. "
            "Get the file again, or choose another model."
        )


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """How many rows of a tensor of `shape` to handle at a time; at least one."""
    return max(1, CHUNK_BYTES // max(1, 4 * math.prod(shape[1:])))


def library_error(path: Path, what: str, error: Exception) -> ModelFileError:
    """Turn what a library raised over a file into our words; `what` names the part that it stumbled over."""
    return ModelFileError(f"{what} of {path} cannot be read: {first_line(error)}. Get the file again.")


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = ", ..." if len(listed) > _NAMES_SHOWN else ""
    return ", ".join(listed[:_NAMES_SHOWN]) + more


def first_line(error: Exception) -> str:
    """The type and the first line of an error of a library, to be put into a sentence."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0].rstrip('.')}" if text else type(error).__name__
