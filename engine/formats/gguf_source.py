"""A GGUF file as a source of weights, with transformers' tensor names and permutations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch

from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.tensor_specs import Need, library_error, refuse_mismatch, rows_per_chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel

#: Tensors that transformers never rearranges; the largest ones of a small model.
_PLAIN = ("token_embd.weight", "output.weight")
#: The factor by which each rotation by position is slower, as of Llama 3.1 and later.
_ROPE_FACTORS = "rope_freqs.weight"
#: How rotations are scaled -> the settings of it in the metadata, and their names in transformers.
_SCALINGS: dict[str, dict[str, str]] = {
    "none": {},
    "linear": {"factor": "factor"},
    "yarn": {"factor": "factor", "original_context_length": "original_max_position_embeddings"},
}


class _Reader(gguf.GGUFReader):
    """gguf's reader, which by itself takes what lies behind the end of the file for empty."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        found: NDArray[Any] = super()._get(offset, dtype, count, override_order)
        if len(found) < int(count):
            raise ValueError("it is truncated, or a length in its header is wrong")
        return found


class GgufSource:
    """A model in one GGUF file. Raises ModelFileError or UnsupportedModel when its header is invalid."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.origin = path.name  #: the file's name
        try:
            reader = _Reader(path)
            values = {
                name: None if field.types[0] == gguf.GGUFValueType.ARRAY else field.contents()
                for name, field in reader.fields.items()
            }
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the reader validates little: any exception is possible
            if "magic" in str(error):
                raise ModelFileError(
                    f"{path} is not a GGUF file. Give a GGUF file or a Hugging Face folder."
                ) from error
            if "GGMLQuantizationType" in str(error):
                raise UnsupportedModel(
                    f"{path} is packed in an unknown way ({error}). Get another quantization."
                ) from error
            raise library_error(path, "The header", error) from error
        if reader.byte_order == "S":
            raise UnsupportedModel(f"{path} is big-endian. Get a little-endian conversion of the model.")
        parts = values.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedModel(
                f"{path} is one of {parts} parts. Join them first: llama-gguf-split --merge FIRST_PART OUTPUT."
            )
        self.license = str(values.get("general.license") or "unknown")  #: the file's licence
        self.tensor_count = len(reader.tensors)  #: in the file
        self._architecture = str(values.get("general.architecture", ""))
        self._has_tokenizer = "tokenizer.ggml.tokens" in values
        prefix = f"{self._architecture}.rope.scaling."
        self._scaling = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        # Without the reader's fields, which are an object for every token, and its mapping of the file.
        without: Any = None
        self._tensors: dict[str, gguf.ReaderTensor] = {
            tensor.name: tensor._replace(data=without, field=without) for tensor in reader.tensors
        }
        self._found: dict[str, gguf.ReaderTensor] = {}
        self._processor: Any = None

    def config(self) -> PreTrainedConfig:
        """The config that transformers derives from the metadata."""
        from transformers import AutoConfig
        from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

        if self._architecture not in GGUF_SUPPORTED_ARCHITECTURES:
            raise UnsupportedModel(
                f"{self.path} holds a model of architecture {self._architecture!r}, which transformers cannot read "
                "from GGUF. Import its Hugging Face folder instead, or choose another model."
            )
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the reader validates little: any exception is possible
            raise library_error(self.path, "The metadata", error) from error
        # Set by the reader; it is not a setting of the model.
        vars(config).pop("_model_name_or_path", None)
        self._scale_rotations(config)
        return config

    def _scale_rotations(self, config: PreTrainedConfig) -> None:
        """Set how rotations by position are scaled. llama.cpp applies it, transformers' reader leaves it out."""
        scaling = {name: value for name, value in self._scaling.items() if name != "finetuned"}
        kind = str(scaling.pop("type", "linear" if scaling else "none"))
        names = _SCALINGS.get(kind, {})
        if kind not in _SCALINGS or scaling.keys() - names.keys():
            raise UnsupportedModel(
                f"{self.path} scales rotations by position in a way that is not supported ({kind}: "
                f"{', '.join(sorted(scaling)) or 'no settings'}). Import its Hugging Face folder instead."
            )
        settings: dict[str, Any] = {names[name]: value for name, value in scaling.items()}
        settings |= {"rope_type": kind} if names else {}
        if (tensor := self._tensors.pop(_ROPE_FACTORS, None)) is not None:
            factors = next(self._unpack(tensor, 1)).tolist()
            settings = {
                "rope_type": "longrope",  # the one that takes any factors
                **dict.fromkeys(("short_factor", "long_factor"), factors),
                "original_max_position_embeddings": config.max_position_embeddings,
                "attention_factor": 1.0,
            }
        if settings:
            parameters = config.rope_parameters
            parameters.get("full_attention", parameters).update(settings)  # sliding windows need no scaling

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer of the metadata."""
        from transformers import PreTrainedTokenizerFast

        if not self._has_tokenizer:
            raise ModelFileError(f"{self.path} contains no tokenizer. Get a GGUF file that does.")
        try:
            # AutoTokenizer returns this class, too, after reading the metadata a second time.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True
            )
            tokenizer.save_pretrained(folder)
        except Exception as error:
            raise library_error(self.path, "The tokenizer", error) from error

    def match(self, model: PreTrainedModel, needs: list[Need]) -> None:
        """Find every need under its GGUF name. Raises UnsupportedModel for a tensor that the model has no place for."""
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        processor_class = TENSOR_PROCESSORS.get(self._architecture, TensorProcessor)
        if processor_class.perform_fallback_tensor_mapping is not TensorProcessor.perform_fallback_tensor_mapping:
            raise UnsupportedModel(
                f"{self.path} is a mixture of experts, packed in a way that cannot be read piece by piece. "
                "Import its Hugging Face folder instead, or choose another model."
            )
        make: Callable[..., Any] = processor_class
        self._processor = make(config=model.config.to_dict())
        names = self._names(model, needs)
        self._found = {names[name]: tensor for name, tensor in self._tensors.items() if name in names}
        missing = [need.name for need in needs if need.name not in self._found]
        misshapen = [
            f"{need.name} {_shape(found)}, not {need.shape}"
            for need in needs
            if (found := self._found.get(need.name)) and not self._fits(found, need)
        ]
        refuse_mismatch(self.path, missing, misshapen)
        if left := self._tensors.keys() - {tensor.name for tensor in self._found.values()}:
            raise UnsupportedModel(
                f"{self.path} holds {min(left)}, for which transformers' {type(model).__name__} has no place: without "
                "it the model would be another one. Import its Hugging Face folder instead, or choose another model."
            )

    def _names(self, model: PreTrainedModel, needs: list[Need]) -> dict[str, str]:
        """GGUF names of tensors -> names in the model."""
        from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

        name_map: Callable[..., dict[str, str]] = get_gguf_hf_weights_map
        try:
            names = name_map(_NoChildren(model), self._processor)
            if {need.name for need in needs} - set(names.values()):
                # Some architectures need the names of the model's parts, too, which takes seconds.
                names = name_map(model, self._processor)
        except NotImplementedError as error:
            raise UnsupportedModel(
                f"{self.path} holds a model of architecture {self._architecture!r}, whose tensors gguf has no "
                "names for. Import its Hugging Face folder instead, or choose another model."
            ) from error
        return names

    def _fits(self, found: gguf.ReaderTensor, need: Need) -> bool:
        if self._by_rows(found.name):
            return _shape(found) == need.shape
        # The processor may add an axis or transpose; the outcome is checked when it is read.
        return math.prod(_shape(found)) == math.prod(need.shape)

    def read(self, need: Need) -> Iterator[torch.Tensor]:
        """The tensor's rows in float32, unpacked and in the order that transformers expects."""
        tensor = self._found[need.name]
        if self._by_rows(tensor.name):
            for rows in self._unpack(tensor, rows_per_chunk(_shape(tensor))):
                yield torch.from_numpy(self._process(tensor.name, rows))
            return
        (whole,) = self._unpack(tensor, max(1, math.prod(_shape(tensor))))
        processed = self._process(tensor.name, whole)
        if processed.shape != need.shape:
            refuse_mismatch(self.path, [], [f"{need.name} {processed.shape}, not {need.shape}"])
        yield torch.from_numpy(np.ascontiguousarray(processed))

    def _by_rows(self, name: str) -> bool:
        """Whether the processor treats each row of this tensor independently."""
        from transformers.modeling_gguf_pytorch_utils import (
            Gemma2TensorProcessor,
            LlamaTensorProcessor,
            NemotronTensorProcessor,
            TensorProcessor,
        )

        if name in _PLAIN:
            return True
        if type(self._processor) is LlamaTensorProcessor:
            # It permutes the rows of queries and keys within each head.
            return ".attn_q." not in name and ".attn_k." not in name
        return type(self._processor) in (TensorProcessor, Gemma2TensorProcessor, NemotronTensorProcessor)

    def _process(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if name in _PLAIN:
            return rows
        result = self._processor.process(weights=rows, name=name, tensor_key_mapping={}, parsed_parameters={})
        if result.name != name:
            # Such a processor joins several tensors, and would hold them all in memory.
            raise UnsupportedModel(
                f"{self.path} packs tensor {name!r} in a way that cannot be read piece by piece. "
                "Import the model's Hugging Face folder instead."
            )
        weights: NDArray[np.float32] = result.weights
        return weights

    def _unpack(self, tensor: gguf.ReaderTensor, rows_at_a_time: int) -> Iterator[NDArray[np.float32]]:
        shape = _shape(tensor)
        rows = shape[0] if len(shape) > 1 else 1  # gguf packs a vector as one row
        row_bytes = tensor.n_bytes // max(1, rows)
        for start in range(0, rows, rows_at_a_time):
            count = min(rows_at_a_time, rows - start)
            place = tensor.data_offset + start * row_bytes
            packed = np.fromfile(self.path, np.uint8, count * row_bytes, offset=place)
            if packed.nbytes < count * row_bytes:
                raise ModelFileError(f"{self.path} changed while it was read. Try again.")
            try:
                # As one row, since gguf loops over groups of 16 rows; blocks do not span rows.
                numbers = gguf.dequantize(packed[None], tensor.tensor_type)
            except NotImplementedError as error:
                raise UnsupportedModel(
                    f"{self.path} packs tensor {tensor.name!r} as {tensor.tensor_type.name}, which cannot be unpacked. "
                    "Get another quantization."
                ) from error
            yield numbers.reshape((count, *shape[1:]) if len(shape) > 1 else shape)


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Rows first, as in torch; GGUF has the fastest-moving dimension first."""
    return tuple(reversed(tensor.shape.tolist()))


class _NoChildren:
    """A model for `get_gguf_hf_weights_map` without the parts that it would recurse into."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.state_dict = model.state_dict

    def named_children(self) -> tuple[()]:
        """No parts: the model's own names are enough."""
        return ()
