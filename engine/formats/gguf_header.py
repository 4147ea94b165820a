"""Reads the header of an untrusted GGUF file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. gguf's own reader makes an object of every
token (140 MB for a small model) and trusts all lengths; this one checks each length against the file first, and keeps
only scalars, strings and the table of tensors.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from pocketllm.engine.errors import ModelFileError, UnsupportedModel

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS of ggml
_DEFAULT_ALIGNMENT_BYTES = 32
#: The smallest metadata entry (key length, type, value) and table row, in bytes.
_MIN_ENTRY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of a GGUF file: position, shape and packing."""

    name: str
    shape: tuple[int, ...]  #: rows first, as in torch
    kind: GGMLQuantizationType
    offset: int  #: bytes from the start of the file
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """The header of a GGUF file, without the values of arrays."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]  #: in the order of the table

    @property
    def architecture(self) -> str:
        """The model's architecture, such as "llama"; empty when it is missing."""
        return self.text("general.architecture")

    def text(self, key: str) -> str:
        """The string under `key`; empty when there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of the GGUF file at `path`.

    Raises ModelFileError when it is another format, truncated, or claims more than the file can hold; and
    UnsupportedModel for a version, byte order or tensor type that cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelFileError(f"{path} is not a GGUF file. Give a GGUF file or a Hugging Face folder.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._position = len(MAGIC)

    def header(self) -> GgufHeader:
        (version,) = self._unpack("<I")
        if version not in _VERSIONS:
            raise UnsupportedModel(
                f"{self._path} is GGUF version {version} or big-endian; only little-endian files of version "
                f"{' and '.join(map(str, _VERSIONS))} can be read. Get a newer conversion of the model."
            )
        tensor_count, entry_count = self._unpack("<QQ")
        left = len(self._data) - self._position
        if entry_count * _MIN_ENTRY_BYTES + tensor_count * _MIN_TENSOR_BYTES > left:
            raise self._broken(f"it claims {tensor_count} tensors and {entry_count} metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string()
            (kind,) = self._unpack("<I")
            if key in metadata:
                raise self._broken(f"its metadata names {key!r} twice")
            metadata[key] = self._value(kind)
        rows = [self._tensor_row() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._broken(f"general.alignment is {alignment!r}, not a power of two")
        start = self._position + -self._position % alignment
        return GgufHeader(metadata=metadata, tensors=self._place(rows, start))

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        raise self._broken(f"its metadata holds a value of the unknown type {kind}")

    def _skip_array(self) -> None:
        kind, count = self._unpack("<IQ")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            if count * 8 > len(self._data) - self._position:
                raise self._broken(f"its metadata claims an array of {count} strings")
            for _ in range(count):
                self._skip(self._unpack("<Q")[0])
        else:
            raise self._broken(f"its metadata holds an array of the unknown type {kind}")

    def _tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._unpack("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise self._broken(f"tensor {name!r} claims {dimensions} dimensions")
        # GGUF has the fastest-moving dimension first, torch last.
        shape = tuple(reversed(self._unpack(f"<{dimensions}Q")))
        kind, offset = self._unpack("<IQ")
        return name, shape, kind, offset

    def _place(self, rows: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in rows:
            if name in tensors:
                raise self._broken(f"tensor {name!r} is listed twice")
            tensor = self._tensor(name, shape, kind, start + offset)
            if tensor.offset + tensor.nbytes > len(self._data):
                raise self._broken(
                    f"tensor {name!r} ends at byte {tensor.offset + tensor.nbytes}, the file at {len(self._data)}"
                )
            tensors[name] = tensor
        return tensors

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        try:
            known = GGMLQuantizationType(kind)
        except ValueError as error:
            raise UnsupportedModel(
                f"{self._path} packs tensor {name!r} in the unknown type {kind}. Get another quantization."
            ) from error
        block, block_bytes = GGML_QUANT_SIZES[known]
        if shape and shape[-1] % block:
            raise self._broken(f"rows of tensor {name!r} are {shape[-1]} long, not a multiple of {block}")
        nbytes = math.prod(shape) // block * block_bytes
        return GgufTensor(name=name, shape=shape, kind=known, offset=offset, nbytes=nbytes)

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        start = self._position
        self._skip(length)
        try:
            return self._data[start : self._position].decode()
        except UnicodeDecodeError as error:
            raise self._broken("its metadata holds text that is not UTF-8") from error

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        start = self._position
        self._skip(struct.calcsize(layout))
        return struct.unpack_from(layout, self._data, start)

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self._position:
            raise self._broken(f"it is truncated, or a length in its header is wrong (byte {self._position})")
        self._position += count

    def _broken(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is not a complete GGUF file: {what}. Get the file again.")
