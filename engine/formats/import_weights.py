"""Writes a model's weights to disk, a few MB at a time, packed if requested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.safetensors_io import SafetensorsWriter
from pocketllm.engine.formats.tensor_specs import Need, WeightSource, rows_per_chunk
from pocketllm.engine.streamed.quantization import pack, unpack


@dataclass(frozen=True, kw_only=True)
class WrittenWeights:
    """A complete weights file."""

    nbytes: int
    sha256: str  #: in hex
    quantization_error: float | None  #: relative root mean square over all packed weights; None: none are packed


def write_weights(
    source: WeightSource, path: Path, needs: list[Need], progress: Callable[[int], None]
) -> WrittenWeights:
    """Write all `needs` to the safetensors file `path`; `progress` is called with the bytes done.

    Memory holds one chunk of rows, and the scales of a packed tensor. Raises ModelFileError when a stored number is
    not finite.
    """
    done = 0
    rounding = _Rounding()
    with _one_thread(), SafetensorsWriter(path, [part for need in needs for part in need.parts]) as writer:
        for need in needs:
            chunks = _packed_chunks(source, need, rounding) if need.packing else _plain_chunks(source, need)
            late: dict[str, list[torch.Tensor]] = {}
            for main, *others in chunks:
                for (name, _, _), part in zip(need.parts[1:], others, strict=True):
                    late.setdefault(name, []).append(part)
                if not all(_is_finite(part) for part in (main, *others) if part.is_floating_point()):
                    raise ModelFileError(
                        f"{source.path} holds numbers in {need.name} that are not finite as "
                        f"{need.packing or need.dtype}. Import it as float32, or get the file again."
                    )
                writer.write(need.name, main)
                done += sum(part.nbytes for part in (main, *others))
                progress(done)
            # Tensors are written one after another, so these wait until the main part is complete.
            for name, parts in late.items():
                for part in parts:
                    writer.write(name, part)
    return WrittenWeights(nbytes=writer.nbytes, sha256=writer.sha256, quantization_error=rounding.error)


def _plain_chunks(source: WeightSource, need: Need) -> Iterator[list[torch.Tensor]]:
    for rows in source.read(need):
        yield [rows.to(need.dtype)]


def _packed_chunks(source: WeightSource, need: Need, rounding: _Rounding) -> Iterator[list[torch.Tensor]]:
    """The parts of a few rows at a time, in the order of `need.parts`."""
    assert need.packing
    for chunk in source.read(need):
        # Some sources yield a whole tensor, and packing takes several times its memory.
        for rows in torch.split(chunk, rows_per_chunk(need.shape)):
            dense = rows.float()
            parts = pack(dense, need.packing)
            rounding.add(dense, unpack(parts, torch.empty_like(dense)))
            yield [parts[name.removeprefix(need.name)] for name, _, _ in need.parts]


class _Rounding:
    """The rounding error of packed weights, over all weights that were added."""

    def __init__(self) -> None:
        self._error = 0.0  # sums of squares
        self._weights = 0.0
        self._packed = False

    def add(self, weights: torch.Tensor, unpacked: torch.Tensor) -> None:
        """Add some weights."""
        self._packed = True
        self._error += torch.linalg.vector_norm(unpacked - weights, dtype=torch.float64).item() ** 2
        self._weights += torch.linalg.vector_norm(weights, dtype=torch.float64).item() ** 2

    @property
    def error(self) -> float | None:
        """Root of the mean squared error over that of the mean squared weight; None when nothing was packed."""
        if not self._packed:
            return None
        return math.sqrt(self._error / self._weights) if self._weights else 0.0


def _is_finite(numbers: torch.Tensor) -> bool:
    """Whether all numbers are finite; many times faster than `isfinite().all()`."""
    return not numbers.numel() or all(math.isfinite(extreme) for extreme in numbers.aminmax())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: on a busy machine, waiting for a second thread takes longer than these operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
