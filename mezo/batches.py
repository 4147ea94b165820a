"""Texts become blocks of tokens, blocks become batches; which batch a step sees depends on (seed, step) alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pocketllm.mezo.errors import BadRequest
from pocketllm.mezo.loss import NO_TARGET
from pocketllm.mezo.noise import philox

#: The generator stream of the batch order; the noise uses the streams from 0 up.
_ORDER_STREAM = 2**63


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Equally long rows of tokens with the token that each position shall predict."""

    inputs: torch.Tensor  #: (blocks, tokens) int64
    targets: torch.Tensor  #: (blocks, tokens) int64, NO_TARGET where nothing is predicted

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice | torch.Tensor) -> "Blocks":
        return Blocks(inputs=self.inputs[rows], targets=self.targets[rows])

    @property
    def target_counts(self) -> torch.Tensor:
        """(blocks,): how many positions of each block predict something."""
        return (self.targets != NO_TARGET).sum(1)

    @property
    def tokens(self) -> int:
        """How many positions predict something."""
        return int(self.target_counts.sum())

    def split(self, size: int) -> Iterator["Blocks"]:
        """The blocks in runs of at most `size`."""
        return (self[slice(start, start + size)] for start in range(0, len(self), size))


def pack(texts: Sequence[Sequence[int]], *, length: int, separator: int) -> Blocks:
    """Join token lists, each ended by `separator`, and cut the stream into blocks of `length` positions.

    Each token but the very first is predicted exactly once. Only the last block may be short; it is filled up
    with separators that are not predicted. Raises BadRequest when there is no text.
    """
    stream = np.concatenate(
        [np.asarray([*text, separator], dtype=np.int64) for text in texts] or [np.empty(0, np.int64)]
    )
    if len(stream) < 2:
        raise BadRequest("There is no text to learn from. POST /texts first.")
    positions = len(stream) - 1
    count = -(-positions // length)
    inputs = np.full(count * length, separator, dtype=np.int64)
    targets = np.full(count * length, NO_TARGET, dtype=np.int64)
    inputs[:positions], targets[:positions] = stream[:-1], stream[1:]
    return Blocks(
        inputs=torch.from_numpy(inputs).view(count, length), targets=torch.from_numpy(targets).view(count, length)
    )


def batch_at(blocks: Blocks, *, step: int, size: int, seed: int) -> Blocks:
    """The batch of step `step` (from 1): every block once an epoch, in an order drawn anew each epoch.

    A pure function of its arguments, so a resumed run sees what an undisturbed run would have seen.
    """
    size = min(size, len(blocks))
    first = (step - 1) * size
    epochs = range(first // len(blocks), (first + size - 1) // len(blocks) + 1)
    order = np.concatenate([_order(len(blocks), seed, epoch) for epoch in epochs])
    start = first % len(blocks)
    return blocks[torch.from_numpy(order[start : start + size])]


def _order(count: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    # Ranks of raw words rather than Generator.permutation, whose stream NumPy does not promise to keep.
    return np.argsort(philox(seed, epoch, _ORDER_STREAM).random_raw(count), kind="stable")
