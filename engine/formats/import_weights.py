"""Writes a model's weights to disk, a few MB at a time, packed if requested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.quantization import pack, unpack
from pocketllm.engine.formats.safetensors_io import write_safetensors
from pocketllm.engine.formats.tensor_specs import Need, rows_per_chunk

if TYPE_CHECKING:
    from pocketllm.engine.formats.gguf_source import GgufSource
    from pocketllm.engine.formats.hugging_face import HuggingFaceSource

    #: A model in a foreign format. Reading one never runs code that came with it.
    WeightSource: TypeAlias = GgufSource | HuggingFaceSource


def write_weights(
    source: WeightSource, path: Path, needs: list[Need], progress: Callable[[int], None]
) -> tuple[int, str, float | None]:
    """Write all `needs` to the safetensors file `path`; `progress` is called with the bytes done.

    Returns the file's size, its SHA-256 in hex, and the relative root mean square of the rounding errors of all packed
    weights, None where none are packed. Memory holds one chunk of rows, and the scales of a packed tensor. Raises
    ModelFileError when a stored number is not finite.
    """
    squares = torch.zeros(2, dtype=torch.float64)  # sums over the packed weights: of their errors, and of them
    with _one_thread():
        parts = [part for need in needs for part in need.parts]
        nbytes, sha256 = write_safetensors(path, parts, _stored_rows(source, needs, squares, progress))
    error, size = squares.sqrt().tolist()
    packed = any(need.packing for need in needs)
    return nbytes, sha256, (error / size if size else 0.0) if packed else None


def _stored_rows(
    source: WeightSource, needs: list[Need], squares: torch.Tensor, progress: Callable[[int], None]
) -> Iterator[torch.Tensor]:
    """The rows of all parts, in the order of the file."""
    done = 0
    for need in needs:
        late: list[list[torch.Tensor]] = [[] for _ in need.parts[1:]]
        chunks = _packed_chunks(source, need, squares) if need.packing else _plain_chunks(source, need)
        for main, *others in chunks:
            if not all(_is_finite(part) for part in (main, *others) if part.is_floating_point()):
                raise ModelFileError(
                    f"{source.path} holds numbers in {need.name} that are not finite as "
                    f"{need.packing or need.dtype}. Import it as float32, or get the file again."
                )
            yield main
            # Tensors are written one after another, so these wait until the main part is complete.
            for waiting, part in zip(late, others, strict=True):
                waiting.append(part)
            done += sum(part.nbytes for part in (main, *others))
            progress(done)
        yield from chain.from_iterable(late)


def _plain_chunks(source: WeightSource, need: Need) -> Iterator[list[torch.Tensor]]:
    for rows in source.read(need):
        yield [rows.to(need.dtype)]


def _packed_chunks(source: WeightSource, need: Need, squares: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """The parts of a few rows at a time, in the order of `need.parts`."""
    assert need.packing
    for chunk in source.read(need):
        # Some sources yield a whole tensor, and packing takes several times its memory.
        for rows in torch.split(chunk, rows_per_chunk(need.shape)):
            dense = rows.float()
            parts = pack(dense, need.packing)
            errors = unpack(parts, torch.empty_like(dense)) - dense
            norms = [torch.linalg.vector_norm(numbers, dtype=torch.float64) for numbers in (errors, dense)]
            squares += torch.stack(norms).square()
            yield [parts[name.removeprefix(need.name)] for name, _, _ in need.parts]


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
