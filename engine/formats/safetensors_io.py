"""Reads the header of a safetensors file, and writes a file in chunks of rows.

A safetensors file is 8 bytes of header length, a JSON header, and then every tensor's bytes back to back:
https://huggingface.co/docs/safetensors. The format allows no gap between tensors. Nothing here imports torch
before a tensor is written, so that a process that only lists models stays small.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.atomic import atomic

if TYPE_CHECKING:
    import torch

#: Where tensor data starts, so that a vector load of any width is aligned.
ALIGNMENT_BYTES = 64
_LENGTH = struct.Struct("<Q")

#: Names of the format -> (name of the dtype in torch, bytes an element).
DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "I16": ("int16", 2),
    "I32": ("int32", 4),
    "I64": ("int64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
}
_CODES = {name: code for code, (name, _) in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a safetensors file: position, dtype and shape."""

    name: str
    dtype: str  #: name of the dtype in torch, such as "bfloat16"
    shape: tuple[int, ...]
    offset: int  #: bytes from the start of the file
    nbytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the entries of the safetensors file at `path`, in the order of their bytes.

    Raises ModelFileError if the file is incomplete or its header invalid: safetensors' own reader checks that every
    tensor is within the file and as long as its shape says, without gaps and overlaps. It does not give their offsets,
    so the header is parsed here.
    """
    try:
        with safe_open(path, "numpy"):
            return trusted_header(path)
    except SafetensorError as error:
        raise _broken(path, str(error).removeprefix("Error while deserializing header: ")) from error


def trusted_header(path: Path) -> dict[str, TensorEntry]:
    """The same without the checks, which import numpy; for PocketLLM's own files."""
    try:
        length, header = parse_header(path)
        header.pop("__metadata__", None)
        entries = [
            TensorEntry(
                name=name,
                dtype=DTYPES[value["dtype"]][0],
                shape=tuple(value["shape"]),
                offset=_LENGTH.size + length + value["data_offsets"][0],
                nbytes=value["data_offsets"][1] - value["data_offsets"][0],
            )
            for name, value in header.items()
        ]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _broken(path, f"its header cannot be read ({error!r})") from error
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes))}


def parse_header(path: Path) -> tuple[int, dict[str, Any]]:
    """The length of a file's header, and the header. Raises ValueError, TypeError or RecursionError if it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH.size), "little")
        return length, dict(json.loads(file.read(min(length, path.stat().st_size))))


def _broken(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path} is not a complete safetensors file: {reason}. Get the file again.")


def read_rows(path: Path, entry: TensorEntry, at_once: int) -> Iterator[torch.Tensor]:
    """Yield a tensor of the file, `at_once` rows at a time. Raises ModelFileError if the file has become shorter."""
    import torch

    dtype: torch.dtype = getattr(torch, entry.dtype)
    rows = entry.shape[0] if entry.shape else 1
    row_bytes = entry.nbytes // max(1, rows)
    with path.open("rb") as file:
        file.seek(entry.offset)
        for start in range(0, rows if entry.nbytes else 0, at_once):
            count = min(at_once, rows - start)
            # A bytearray, since torch warns of read-only buffers.
            data = bytearray(count * row_bytes)
            if file.readinto(data) != len(data):
                raise ModelFileError(f"{path} ended early: it changed while being read. Try again.")
            yield torch.frombuffer(data, dtype=dtype).view((count, *entry.shape[1:]) if entry.shape else ())


class StoredTensors(Mapping[str, "torch.Tensor"]):
    """A file's tensors by name; each is read when it is asked for, so that a large file takes little memory."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError if the file is incomplete, and OSError if it cannot be read."""
        self._path, self._entries = path, read_header(path)

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        return next(read_rows(self._path, entry, at_once=entry.shape[0] if entry.shape else 1))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, Sequence[int], torch.dtype]],
    chunks: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Write a file of these tensors from chunks of their rows, in order; returns its size, and its SHA-256 in hex.

    Raises ModelFileError when the chunks are not as many bytes as the tensors.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, shape, dtype in tensors:
        code = _CODES[str(dtype).removeprefix("torch.")]
        start, end = end, end + math.prod(shape) * DTYPES[code][1]
        table[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + _LENGTH.size) % ALIGNMENT_BYTES)  # the format allows spaces as padding
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for data in chain((_LENGTH.pack(len(header)), header), map(_bytes_of, chunks)):
            file.write(data)
            digest.update(data)
            size += len(data)
    if (expected := _LENGTH.size + len(header) + end) != size:
        raise ModelFileError(f"{path} was left incomplete: it has {size} bytes, its tensors need {expected}.")
    return size, digest.hexdigest()


def _bytes_of(rows: torch.Tensor) -> Any:
    import torch

    return rows.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors atomically; an existing file is replaced.

    safetensors' own writer needs a second copy of all tensors in memory, and writes the metadata in a random order.
    """
    shapes = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
    with atomic(path) as scratch:
        write_safetensors(scratch, shapes, tensors.values(), metadata)
