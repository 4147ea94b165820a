"""An open weights file: each weight as it is kept, made dense only while it is used.

The file is mapped, never read: a page comes into memory when touched, is shared with other processes, and is
given back by `release` once its layer has run. So resident memory does not grow with the model's depth.
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
#: Rows that are gathered before their pages are given back: each may bring in 256 kB.
_GATHERED = 32
#: Of the codes' dtype.
_PACKING_OF = {"int8": "int8", "uint8": "int4"}


class Scratch:
    """Memory for one dense weight at a time, used again for the next."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, valid until the next call."""
        needed = dtype.itemsize * torch.Size(shape).numel()
        if self._bytes.numel() < needed:
            self._bytes = torch.empty(0, dtype=torch.uint8)  # give the old one back first
            self._bytes = torch.empty(needed, dtype=torch.uint8)
        return self._bytes[:needed].view(dtype).view(tuple(shape))


@dataclass(frozen=True)
class Pages:
    """Which bytes of the mapped file a weight lies in."""

    mapping: mmap.mmap
    spans: tuple[tuple[int, int], ...]  #: first byte, and the one after the last

    def prefetch(self) -> None:
        """Ask the kernel to read them from disk in the background."""
        if hasattr(mmap, "MADV_WILLNEED"):
            for start, stop in self.spans:
                first = start - start % mmap.PAGESIZE
                self.mapping.madvise(mmap.MADV_WILLNEED, first, stop - first)

    def release(self) -> None:
        """Take them out of this process's resident memory; they stay in the kernel's cache while it has room."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for start, stop in self.spans:
                # Rounded inwards, but a neighbour's page would only be read again.
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
        """Whether it is kept as codes with scales."""
        return len(self.parts) > 1

    @property
    def floats(self) -> torch.Tensor:
        """The floats of a weight that is not packed, as they are kept: not a copy."""
        return self.parts[""]

    def dense(self, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
        """The weight in `dtype`: itself where it is kept so, else made in the scratch. Not to be written to."""
        if not self.packed and self.floats.dtype == dtype:
            return self.floats
        return self._fill(self.parts, scratch.take(self.shape, dtype))

    def rows(self, start: int, stop: int, dtype: torch.dtype, scratch: Scratch) -> torch.Tensor:
        """Some rows of `dense`."""
        return Weight(
            (stop - start, *self.shape[1:]), {suffix: part[start:stop] for suffix, part in self.parts.items()}
        ).dense(dtype, scratch)

    def gather(self, ids: torch.Tensor, dtype: torch.dtype, *, release: bool = False) -> torch.Tensor:
        """The rows with these numbers, (n, columns), as a new tensor; with `release`, giving pages back meanwhile.

        The kernel maps many pages where one is touched, so a thousand words here and there would bring in the whole.
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
        """Take the weight into this process's memory, in `dtype`, to be changed there; returns it."""
        copy = torch.empty(self.shape, dtype=dtype).copy_(self.floats)
        self.release()
        self.parts, self.pages = {"": copy}, None
        return copy

    def release_rows(self, start: int, stop: int) -> None:
        """Give back the pages of some rows. Does nothing for a weight in memory."""
        if self.pages is not None:
            spans = tuple(
                (first + (last - first) * start // self.shape[0], first + (last - first) * stop // self.shape[0])
                for first, last in self.pages.spans
            )
            Pages(self.pages.mapping, spans).release()

    def _fill(self, parts: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        return unpack(parts, out) if self.packed else out.copy_(parts[""])


class DenseWeights:
    """Weights that stay dense together, in memory that is used again for those after them."""

    def __init__(self) -> None:
        self._made: dict[Weight, torch.Tensor] = {}
        self._scratches: list[Scratch] = []

    def of(self, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
        """The dense weight, made when it is asked for first; valid until `clear`."""
        if weight not in self._made:
            if len(self._made) == len(self._scratches):
                self._scratches.append(Scratch())
            self._made[weight] = weight.dense(dtype, self._scratches[len(self._made)])
        return self._made[weight]

    def clear(self) -> None:
        """These are not needed any more."""
        self._made.clear()


def open_weights(path: Path) -> dict[str, Weight]:
    """Every weight of a weights file by its name. Raises ModelFileError when the file is broken.

    Never write to these tensors: the mapping is read-only and a write ends the process (SIGSEGV).
    """
    mapping, entries = _map(path)
    names = [name for name in entries if not name.endswith(_PART_SUFFIXES)]
    weights = {name: _weight(path, mapping, entries, name) for name in names}
    used = {name + suffix for name, weight in weights.items() for suffix in weight.parts}
    if stray := entries.keys() - used:
        raise ModelFileError(f"{path} holds {min(stray)}, which belongs to no weight. Import the model again.")
    return weights


def behind_each_other(weights: Sequence[Weight]) -> torch.Tensor | None:
    """The floats of these matrices as one, all rows of the first and then of the next, where the file has them so.

    None where it does not, or where they are packed, of several widths or dtypes, or not in the file any more.
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
            # ACCESS_COPY would need no warning filter, but private writable pages count against RLIMIT_DATA,
            # which caps the worker: the weights would use up the budget meant for anonymous memory.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), entries
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}. Import the model again.") from error


def _view(path: Path, mapping: mmap.mmap, entry: TensorEntry) -> torch.Tensor:
    dtype: Any = getattr(torch, entry.dtype)
    if entry.nbytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.offset % dtype.itemsize:
        raise ModelFileError(f"{path} has tensor {entry.name!r} at an odd address. Import the model again.")
    return _mapped(mapping, dtype, entry.offset, entry.offset + entry.nbytes).view(entry.shape)


def _mapped(mapping: mmap.mmap, dtype: torch.dtype, start: int, stop: int) -> torch.Tensor:
    """The numbers between two bytes of the file."""
    with warnings.catch_warnings():
        # torch warns that it cannot forbid writes to such a buffer; `open_weights` tells the caller.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        # The tensor holds a reference to the mapping, so it stays mapped as long as the tensor lives.
        return torch.frombuffer(mapping, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start)


def _weight(path: Path, mapping: mmap.mmap, entries: Mapping[str, TensorEntry], name: str) -> Weight:
    entry = entries[name]
    packing = _PACKING_OF.get(entry.dtype)
    if packing is None:
        return Weight(entry.shape, {"": _view(path, mapping, entry)}, _pages(mapping, [entry]))
    shape = (*entry.shape[:-1], entry.shape[-1] * (2 if packing == "int4" else 1)) if entry.shape else ()
    if not packable(shape, packing):
        raise ModelFileError(f"{path} holds {name} in {packing}, which its shape {shape} cannot be. Import it again.")
    parts = {}
    found = []
    for part_name, part_shape, dtype in packed_parts(name, shape, packing):
        part = entries.get(part_name)
        if part is None or part.shape != part_shape or f"torch.{part.dtype}" != str(dtype):
            raise ModelFileError(f"{path} holds {name} in {packing} without a fitting {part_name}. Import it again.")
        parts[part_name.removeprefix(name)] = _view(path, mapping, part)
        found.append(part)
    return Weight(shape, parts, _pages(mapping, found))


def _pages(mapping: mmap.mmap, entries: Iterable[TensorEntry]) -> Pages:
    return Pages(mapping, tuple((entry.offset, entry.offset + entry.nbytes) for entry in entries))
