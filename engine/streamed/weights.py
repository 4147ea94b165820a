"""The weights of an open weights file, packed or as floats, each made dense only while it is used.

The file is memory-mapped. A page is loaded when touched, shared between processes, and dropped by `release` after its
layer has run, so resident memory does not grow with the model's depth.
"""

import mmap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.safetensors_io import TensorEntry, read_header
from pocketllm.engine.streamed.quantization import MINIMA, SCALES, packable, packed_parts, unpack

_PART_SUFFIXES = (SCALES, MINIMA)
#: Rows to gather before releasing their pages: each may load 256 kB.
_GATHERED = 32
#: dtype of the codes -> packing.
_PACKING_OF = {"int8": "int8", "uint8": "int4"}


class Scratch:
    """A reusable buffer for one dense weight at a time."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, valid until the next call."""
        needed = dtype.itemsize * torch.Size(shape).numel()
        if self._bytes.numel() < needed:
            self._bytes = torch.empty(0, dtype=torch.uint8)  # free the old buffer first
            self._bytes = torch.empty(needed, dtype=torch.uint8)
        return self._bytes[:needed].view(dtype).view(tuple(shape))


@dataclass(frozen=True)
class Pages:
    """The byte ranges of a weight in the mapped file."""

    mapping: mmap.mmap
    spans: tuple[tuple[int, int], ...]  #: first byte, and the one after the last

    def prefetch(self) -> None:
        """Ask the kernel to read the pages from disk in the background."""
        if hasattr(mmap, "MADV_WILLNEED"):
            for start, stop in self.spans:
                first = start - start % mmap.PAGESIZE
                self.mapping.madvise(mmap.MADV_WILLNEED, first, stop - first)

    def release(self) -> None:
        """Drop the pages from this process's resident memory; the kernel's page cache may keep them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for start, stop in self.spans:
                # Rounded inwards: a page shared with a neighbouring weight stays.
                first = start + -start % mmap.PAGESIZE
                if (length := stop - stop % mmap.PAGESIZE - first) > 0:
                    self.mapping.madvise(mmap.MADV_DONTNEED, first, length)


class Weight:
    """One weight: floats or packed codes, in the mapped file or in memory."""

    def __init__(self, shape: Sequence[int], parts: Mapping[str, torch.Tensor], pages: Pages | None = None) -> None:
        """parts: {"": floats}, or what quantization.pack gives."""
        self.shape = tuple(shape)
        self.parts = parts
        self.pages = pages

    @property
    def packed(self) -> bool:
        """Whether it is stored as codes with scales."""
        return len(self.parts) > 1

    @property
    def floats(self) -> torch.Tensor:
        """The stored floats of a weight that is not packed; not a copy."""
        return self.parts[""]

    def dense(self, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
        """The weight in `dtype`: the stored tensor if it fits, else a copy in `scratch`. Do not write to it."""
        if not self.packed and self.floats.dtype == dtype:
            return self.floats
        return self._fill(self.parts, scratch.take(self.shape, dtype))

    def rows(self, start: int, stop: int, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
        """Some rows of `dense`."""
        return Weight(
            (stop - start, *self.shape[1:]), {suffix: part[start:stop] for suffix, part in self.parts.items()}
        ).dense(dtype, scratch)

    def gather(self, ids: torch.Tensor, dtype: torch.dtype, *, release: bool = False) -> torch.Tensor:
        """(n,) row numbers -> (n, columns), a new tensor; `release` limits how many pages are resident meanwhile.

        The kernel maps many pages around a touched one, so a thousand scattered rows would load the whole matrix.
        """
        rows = torch.empty((len(ids), *self.shape[1:]), dtype=dtype)
        at_once = _GATHERED if release else max(1, len(ids))
        for start in range(0, len(ids), at_once):
            some = ids[start : start + at_once]
            self._fill({suffix: part[some] for suffix, part in self.parts.items()}, rows[start : start + at_once])
            if release:
                self.release()
        return rows

    def prefetch(self) -> None:
        """See Pages.prefetch. Does nothing for a weight in memory."""
        if self.pages is not None:
            self.pages.prefetch()

    def release(self) -> None:
        """See Pages.release. Does nothing for a weight in memory."""
        if self.pages is not None:
            self.pages.release()

    def load(self, dtype: torch.dtype) -> torch.Tensor:
        """Copy the weight into memory, in `dtype`, for training; returns the copy, which is used from now on."""
        copy = torch.empty(self.shape, dtype=dtype).copy_(self.floats)
        self.release()
        self.parts, self.pages = {"": copy}, None
        return copy

    def release_rows(self, start: int, stop: int) -> None:
        """Release the pages of some rows. Does nothing for a weight in memory."""
        if self.pages is not None:
            spans = tuple(
                (first + (last - first) * start // self.shape[0], first + (last - first) * stop // self.shape[0])
                for first, last in self.pages.spans
            )
            Pages(self.pages.mapping, spans).release()

    def _fill(self, parts: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        return unpack(parts, out) if self.packed else out.copy_(parts[""])


class DenseWeights:
    """Dense copies of several weights, in buffers that are reused after `clear`."""

    def __init__(self) -> None:
        self._made: dict[Weight, torch.Tensor] = {}
        self._scratches: list[Scratch] = []

    def of(self, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
        """The dense weight, made on first use; valid until `clear`."""
        if weight not in self._made:
            if len(self._made) == len(self._scratches):
                self._scratches.append(Scratch())
            self._made[weight] = weight.dense(dtype, self._scratches[len(self._made)])
        return self._made[weight]

    def clear(self) -> None:
        """Let the buffers be reused."""
        self._made.clear()


def open_weights(path: Path) -> dict[str, Weight]:
    """The weights of a weights file by name. Raises ModelFileError when the file is broken.

    Never write to these tensors: the mapping is read-only, and a write kills the process (SIGSEGV).
    """
    mapping, entries = _map(path)
    names = [name for name in entries if not name.endswith(_PART_SUFFIXES)]
    weights = {name: _weight(path, mapping, entries, name) for name in names}
    used = {name + suffix for name, weight in weights.items() for suffix in weight.parts}
    if stray := entries.keys() - used:
        raise ModelFileError(f"{path} holds {min(stray)}, which belongs to no weight. Import the model again.")
    return weights


def adjacent(weights: Sequence[Weight]) -> torch.Tensor | None:
    """These matrices as one, the rows of the first before those of the second, if the file stores them that way.

    None if it does not, or if they are packed, in memory, or differ in width or dtype.
    """
    pages = [weight.pages for weight in weights if weight.pages is not None and not weight.packed]
    kinds = {(weight.shape[1:], weight.parts[""].dtype) for weight in weights if not weight.packed}
    if len(pages) < len(weights) or len(kinds) > 1 or len(weights[0].shape) != 2:
        return None
    if any(one.mapping is not other.mapping or one.spans[-1][1] != other.spans[0][0] for one, other in pairwise(pages)):
        return None
    start, stop = pages[0].spans[0][0], pages[-1].spans[-1][1]
    return _mapped(pages[0].mapping, weights[0].floats.dtype, start, stop).view(-1, weights[0].shape[1])


def _map(path: Path) -> tuple[mmap.mmap, dict[str, TensorEntry]]:
    try:
        entries = read_header(path)
        with path.open("rb") as file:
            # ACCESS_COPY would need no warning filter, but private writable pages count against RLIMIT_DATA, the
            # worker's limit on anonymous memory.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), entries
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}. Import the model again.") from error


def _view(path: Path, mapping: mmap.mmap, entry: TensorEntry) -> torch.Tensor:
    dtype: Any = getattr(torch, entry.dtype)
    if entry.nbytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.offset % dtype.itemsize:
        raise ModelFileError(f"{path} has tensor {entry.name!r} at an unaligned address. Import the model again.")
    return _mapped(mapping, dtype, entry.offset, entry.offset + entry.nbytes).view(entry.shape)


def _mapped(mapping: mmap.mmap, dtype: torch.dtype, start: int, stop: int) -> torch.Tensor:
    """The numbers between two byte offsets of the file."""
    with warnings.catch_warnings():
        # torch warns that it cannot prevent writes to such a buffer; the docstring of `open_weights` says so.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        # The tensor keeps a reference to the mapping, so the file stays mapped as long as the tensor lives.
        return torch.frombuffer(mapping, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start)


def _weight(path: Path, mapping: mmap.mmap, entries: Mapping[str, TensorEntry], name: str) -> Weight:
    entry = entries[name]
    packing = _PACKING_OF.get(entry.dtype)
    if packing is None:
        return Weight(entry.shape, {"": _view(path, mapping, entry)}, _pages(mapping, [entry]))
    shape = (*entry.shape[:-1], entry.shape[-1] * (2 if packing == "int4" else 1)) if entry.shape else ()
    if not packable(shape, packing):
        raise ModelFileError(f"{path} holds {name} in {packing}, which its shape {shape} rules out. Import it again.")
    parts = {}
    found = []
    for part_name, part_shape, dtype in packed_parts(name, shape, packing):
        part = entries.get(part_name)
        if part is None or part.shape != part_shape or f"torch.{part.dtype}" != str(dtype):
            raise ModelFileError(f"{path} holds {name} in {packing} without a matching {part_name}. Import it again.")
        parts[part_name.removeprefix(name)] = _view(path, mapping, part)
        found.append(part)
    return Weight(shape, parts, _pages(mapping, found))


def _pages(mapping: mmap.mmap, entries: Iterable[TensorEntry]) -> Pages:
    return Pages(mapping, tuple((entry.offset, entry.offset + entry.nbytes) for entry in entries))
