"""What enters the lowest adapted layer, computed once for each batch: it does not depend on the adapter.

The states lie in a file of slots, one a batch, each with a checksum. A slot that a crash left half written, or never
written, is made again, from the same batch and so with the same bits. Read and written, not mapped: its pages are the
kernel's, which drops them when memory is short.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from pocketllm.mezo.batches import Blocks, Entering

#: In front of each slot: a mark, and the checksum of what follows.
_MARK, _CHECKSUM_BYTES = b"PLT1", 4

#: What enters a layer: (blocks, tokens, width).
Entry = Callable[[Blocks, int], torch.Tensor]


class TrunkCache:
    """Batches, each with what enters a layer. Closes its file, which stays, at the end of a `with`."""

    def __init__(
        self,
        batches: Sequence[Blocks],
        *,
        layer: int,
        entering: Entry,
        width: int,
        dtype: torch.dtype,
        file: Path,
        most_bytes: int,
    ) -> None:
        """entering: computes what enters `layer`, (blocks, tokens, width) in `dtype`. file: made where there is none.

        most_bytes: of the file; batches beyond are computed each time. Raises OSError when the file cannot be opened.
        """
        self.batches, self.layer = batches, layer
        self._entering, self._width, self._dtype = entering, width, dtype
        positions = max((batch.inputs.numel() for batch in batches), default=0)
        self._slot_bytes = len(_MARK) + _CHECKSUM_BYTES + positions * width * dtype.itemsize
        self._slots = most_bytes // self._slot_bytes
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)

    def __len__(self) -> int:
        return len(self.batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def at(self, number: int) -> Blocks:
        """A batch, beginning at the layer."""
        batch = self.batches[number]
        states = self._read(number, batch) if number < self._slots else None
        if states is None:
            states = self._entering(batch, self.layer)
            if number < self._slots:
                self._write(number, states)
        return replace(batch, entering=Entering(self.layer, states))

    def _read(self, number: int, batch: Blocks) -> torch.Tensor | None:
        """What is in the slot, if it is whole."""
        shape = (*batch.inputs.shape, self._width)
        states = torch.empty(shape, dtype=self._dtype)
        data = _bytes(states)
        head = bytearray(len(_MARK) + _CHECKSUM_BYTES)
        read = os.preadv(self._descriptor, [head, data], number * self._slot_bytes)
        whole = read == len(head) + len(data) and head == _head(data)
        return states if whole else None

    def _write(self, number: int, states: torch.Tensor) -> None:
        data = _bytes(states.contiguous())
        try:
            os.pwritev(self._descriptor, [_head(data), data], number * self._slot_bytes)
        except OSError:  # no room on the disk: then without
            self._slots = 0


def _head(data: memoryview) -> bytes:
    return _MARK + zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return tensor.view(torch.uint8).numpy().data.cast("B")
