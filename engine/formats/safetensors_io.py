"""Reads the header of a safetensors file, and writes a file tensor by tensor.

A safetensors file is 8 bytes of header length, a JSON header, and then every tensor's bytes back to back:
https://huggingface.co/docs/safetensors. The format allows no gap between tensors. Nothing here imports torch
before a tensor is written, so that a process that only lists models stays small.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open

from pocketllm.engine.errors import ModelFileError

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
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            header = json.loads(file.read(min(length, path.stat().st_size)))
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
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, f"its header cannot be read ({error!r})") from error
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes))}


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


class SafetensorsWriter:
    """Writes a safetensors file in chunks of rows, and computes its hash.

    Use it as a context manager: leaving it syncs the file to disk, and raises ModelFileError when a tensor is
    missing or short. `sha256` (of the whole file, in hex) and `nbytes` (its size) are final after that.
    """

    def __init__(self, path: Path, tensors: Iterable[tuple[str, Sequence[int], torch.dtype]]) -> None:
        self._path = path
        self._waiting: list[TensorEntry] = []
        self._written = 0  # bytes of the first waiting tensor that are in the file
        self._hash = hashlib.sha256()
        self.nbytes = 0
        header = self._plan(tensors)
        self._file = path.open("wb")
        try:
            self._put(_LENGTH.pack(len(header)))
            self._put(header)
        except BaseException:
            self._file.close()
            raise

    def _plan(self, tensors: Iterable[tuple[str, Sequence[int], torch.dtype]]) -> bytes:
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape, torch_dtype in tensors:
            dtype = str(torch_dtype).removeprefix("torch.")
            code = _CODES[dtype]
            nbytes = math.prod(shape) * DTYPES[code][1]
            if name in table:
                raise ValueError(f"tensor {name!r} is listed twice")
            table[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + nbytes]}
            self._waiting.append(TensorEntry(name=name, dtype=dtype, shape=tuple(shape), offset=end, nbytes=nbytes))
            end += nbytes
        header = json.dumps(table, separators=(",", ":")).encode()
        # The format allows spaces as padding.
        return header + b" " * (-(len(header) + _LENGTH.size) % ALIGNMENT_BYTES)

    @property
    def sha256(self) -> str:
        """The hash of the bytes written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, name: str, rows: torch.Tensor) -> None:
        """Append `rows`, the next rows of tensor `name` (or all of it); tensors come in the order given.

        Raises ValueError when another tensor comes next, or when dtype, row shape or length do not fit.
        """
        import torch

        self._skip_empty()
        if not self._waiting or self._waiting[0].name != name:
            expected = self._waiting[0].name if self._waiting else "none"
            raise ValueError(f"tensor {name!r} came out of order; the next one is {expected!r}")
        entry = self._waiting[0]
        data = rows.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        dtype = str(rows.dtype).removeprefix("torch.")
        fits = dtype == entry.dtype and tuple(rows.shape[1:]) == entry.shape[1:]
        if not fits or rows.dim() != len(entry.shape) or self._written + data.nbytes > entry.nbytes:
            raise ValueError(f"{dtype} rows of shape {tuple(rows.shape)} do not fit {entry}")
        self._put(data)
        self._written += data.nbytes
        if self._written == entry.nbytes:
            self._waiting.pop(0)
            self._written = 0

    def close(self) -> None:
        """Sync the file to disk and close it. Raises ModelFileError when a tensor is missing."""
        self._skip_empty()
        missing = [entry.name for entry in self._waiting]
        if not missing:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if missing:
            raise ModelFileError(f"{self._path} was left incomplete: no data came for {', '.join(missing)}.")

    def _skip_empty(self) -> None:
        while self._waiting and self._waiting[0].nbytes == 0:
            self._waiting.pop(0)

    def _put(self, data: Any) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.nbytes += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a file of tensors atomically; an existing file is replaced.

    safetensors' own writer would need a second copy of all tensors in memory.
    """
    scratch = path.with_name(f".{path.name}.writing")
    with SafetensorsWriter(scratch, [(name, value.shape, value.dtype) for name, value in tensors.items()]) as writer:
        for name, value in tensors.items():
            writer.write(name, value)
    scratch.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Sync a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
