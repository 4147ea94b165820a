"""The weights of an open weights file, packed or as floats, each made dense only while it is used.

The file is memory-mapped. A page is loaded when touched, shared between processes, and dropped by `release` after its
layer has run, so resident memory does not grow with the model's depth.
"""

import mmap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.quantization import MINIMA, SCALES, packable, packed_parts, unpack
from pocketllm.engine.formats.safetensors_io import TensorEntry, read_header
from pocketllm.engine.noise import Perturbation
from pocketllm.engine.streamed.context import ForwardContext, Scratch

#: Bytes of a weight made dense at a time, so that they stay in the processor's cache; but not fewer than MIN_ROWS
#: rows, since smaller products are slow.
CHUNK_BYTES, MIN_ROWS = 4 * 2**20, 512
_PART_SUFFIXES = (SCALES, MINIMA)
#: Rows to gather before releasing their pages: each may load 256 kB.
_GATHERED = 32
#: dtype of the codes -> packing.
_PACKING_OF = {"int8": "int8", "uint8": "int4"}


class Weight:
    """One weight: floats or packed codes, in the mapped file or in memory."""

    def __init__(
        self,
        shape: Sequence[int],
        parts: Mapping[str, torch.Tensor],
        mapping: mmap.mmap | None = None,
        spans: Sequence[tuple[int, int]] = (),
    ) -> None:
        """parts: {"": floats}, or what quantization.pack gives. spans: the parts' bytes in `mapping`, first and end."""
        self.shape = tuple(shape)
        self.parts, self.mapping, self.spans = parts, mapping, spans
        self.number: int | None = None  #: among the trained tensors; None: frozen
        #: A dense copy that all products use meanwhile; None: each makes its own, in chunks.
        self.held: torch.Tensor | None = None

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

    def as_stored(self, context: ForwardContext) -> torch.Tensor | None:
        """The stored tensor if a product can use it without a copy, else None."""
        stored = self.parts[""]  # codes have no compute dtype
        perturbed = self.number is not None and context.perturbations
        return stored if stored.dtype == context.dtype and not perturbed else None

    def is_perturbed(self, context: ForwardContext) -> bool:
        """Whether it differs between the parts of the batch."""
        return self.number is not None and len(context.perturbations) > 0

    def chunks(self, context: ForwardContext) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        """Yield dense rows in chunks: a slice, and its value for each part of the batch. Valid until the next chunk."""
        count, copied, perturbed = self.shape[0], self.as_stored(context) is None, self.is_perturbed(context)
        if self.held is not None:
            yield slice(0, count), [self.held]
            return
        at_once = max(MIN_ROWS, CHUNK_BYTES // (context.dtype.itemsize * self.shape[1])) if copied else count
        for start in range(0, count, at_once):
            rows = slice(start, min(start + at_once, count))
            dense = self.rows(rows.start, rows.stop, context.dtype, context.scratch)
            yield rows, self._perturbed(dense, start, context) if perturbed else [dense]
        if context.release and self.packed:  # the product used an unpacked copy
            self.release()

    def whole(self, context: ForwardContext, parts: int, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """A small weight, whole, for each of the batch's `parts`, in `dtype` or the compute dtype."""
        dense = self.dense(dtype or context.dtype, Scratch())
        if not self.is_perturbed(context):
            return [dense] * parts
        values = [torch.empty_like(dense) for _ in context.perturbations]
        for start in range(0, len(dense), MIN_ROWS):  # a position table has many rows
            rows = slice(start, start + MIN_ROWS)
            for value, perturbation in zip(values, context.perturbations, strict=True):
                value[rows] = self.at(perturbation, dense[rows], start)
        return values

    def at(self, perturbation: Perturbation, rows: torch.Tensor, places: int | torch.Tensor) -> torch.Tensor:
        """(n, in) dense rows of the weight -> the same rows perturbed, a new tensor unless the weight is frozen.

        places: the number of the first row, or the (n,) numbers of all.
        """
        if self.number is None:
            return rows
        direction = perturbation.direction
        if isinstance(places, int):
            z = direction.rows(self.number, self.shape, places, places + len(rows), rows.dtype)
        else:
            z = direction.gather(self.number, self.shape, places, rows.dtype)
        return torch.add(rows, z, alpha=perturbation.distance)

    def prefetch(self) -> None:
        """Ask the kernel to read the weight from disk in the background. Does nothing for a weight in memory."""
        if self.mapping is not None and hasattr(mmap, "MADV_WILLNEED"):
            for start, stop in self.spans:
                first = start - start % mmap.PAGESIZE
                self.mapping.madvise(mmap.MADV_WILLNEED, first, stop - first)

    def release(self, start: int = 0, stop: int | None = None) -> None:
        """Drop the pages of these rows from this process's resident memory; the kernel's page cache may keep them.

        Does nothing for a weight in memory.
        """
        if self.mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        rows = 1 if stop is None else self.shape[0]
        for begin, end in self.spans:
            # Rounded inwards: a page shared with a neighbouring weight stays.
            first = begin + (end - begin) * start // rows
            first += -first % mmap.PAGESIZE
            last = begin + (end - begin) * (1 if stop is None else stop) // rows
            if (length := last - last % mmap.PAGESIZE - first) > 0:
                self.mapping.madvise(mmap.MADV_DONTNEED, first, length)

    def load(self, dtype: torch.dtype) -> torch.Tensor:
        """Copy the weight into memory, in `dtype`, for training; returns the copy, which is used from now on."""
        copy = torch.empty(self.shape, dtype=dtype).copy_(self.floats)
        self.release()
        self.parts, self.mapping, self.spans = {"": copy}, None, ()
        return copy

    def _fill(self, parts: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        return unpack(parts, out) if self.packed else out.copy_(parts[""])

    def _perturbed(self, dense: torch.Tensor, start: int, context: ForwardContext) -> list[torch.Tensor]:
        """Dense rows from `start` on, at each perturbation; each direction's z is generated once."""
        assert self.number is not None
        scratches = context.perturbed_scratch
        scratches.extend(Scratch() for _ in range(len(context.perturbations) - len(scratches)))
        free = iter(scratches)
        values = []
        for direction, perturbations in context.groups():
            z = direction.rows(self.number, self.shape, start, start + len(dense), dense.dtype)
            for perturbation in perturbations:
                into = next(free).take(dense.shape, dense.dtype)
                values.append(torch.add(dense, z, alpha=perturbation.distance, out=into))
        return values


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
    mapping, kinds = weights[0].mapping, {(weight.shape[1:], weight.parts[""].dtype) for weight in weights}
    if mapping is None or any(weight.packed or weight.mapping is not mapping for weight in weights):
        return None
    if len(kinds) > 1 or len(weights[0].shape) != 2:
        return None
    spans = [weight.spans[0] for weight in weights]
    if any(one[1] != other[0] for one, other in pairwise(spans)):
        return None
    return _mapped(mapping, weights[0].floats.dtype, spans[0][0], spans[-1][1]).view(-1, weights[0].shape[1])


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
        return Weight(entry.shape, {"": _view(path, mapping, entry)}, mapping, [_span(entry)])
    shape = (*entry.shape[:-1], entry.shape[-1] * (2 if packing == "int4" else 1)) if entry.shape else ()
    if not packable(shape, packing):
        raise ModelFileError(f"{path} holds {name} in {packing}, which its shape {shape} rules out. Import it again.")
    parts, spans = {}, []
    for part_name, part_shape, dtype in packed_parts(name, shape, packing):
        part = entries.get(part_name)
        if part is None or part.shape != part_shape or f"torch.{part.dtype}" != str(dtype):
            raise ModelFileError(f"{path} holds {name} in {packing} without a matching {part_name}. Import it again.")
        parts[part_name.removeprefix(name)] = _view(path, mapping, part)
        spans.append(_span(part))
    return Weight(shape, parts, mapping, spans)


def _span(entry: TensorEntry) -> tuple[int, int]:
    return entry.offset, entry.offset + entry.nbytes
