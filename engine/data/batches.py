"""Rows of tokens become batches; which batch a step sees depends on (seed, step) alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketllm.engine.errors import BadRequest
from pocketllm.engine.philox import philox
from pocketllm.engine.streamed.loss import IGNORE_INDEX

#: A text's token ids.
Ids = Sequence[int] | NDArray[np.int32]

NO_TEXT = "There is no text to learn from. POST /texts first."

#: The generator stream of the batches' order; those of the buckets' orders follow. The noise uses streams from 0 up.
#: Below 2^63, since NumPy would make floating-point numbers of larger ones among small ones.
_ORDER_STREAM = 2**62


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Equally long rows of tokens with the token that each position shall predict."""

    inputs: torch.Tensor  #: (blocks, tokens) int64
    targets: torch.Tensor  #: (blocks, tokens) int64, IGNORE_INDEX where nothing is predicted
    #: Tokens of the label words: the only ones that can be predicted. None: the whole vocabulary.
    label_ids: tuple[int, ...] | None = None
    lengths: torch.Tensor | None = None  #: (blocks,) int64, real tokens of each row. None: no row needs a mask

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice | torch.Tensor) -> "Batch":
        lengths = None if self.lengths is None else self.lengths[rows]
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows], lengths=lengths)

    @property
    def target_counts(self) -> torch.Tensor:
        """(blocks,): how many positions of each block predict something."""
        return (self.targets != IGNORE_INDEX).sum(1)

    @property
    def tokens(self) -> int:
        """How many positions predict something."""
        return int(self.target_counts.sum())

    def repeat(self, count: int) -> "Batch":
        """All blocks, so many times."""
        inputs, targets = self.inputs.repeat(count, 1), self.targets.repeat(count, 1)
        lengths = None if self.lengths is None else self.lengths.repeat(count)
        return replace(self, inputs=inputs, targets=targets, lengths=lengths)

    def joined(self, other: "Batch") -> "Batch | None":
        """These blocks and the other ones; None where they are of another length or kind."""
        kind, others = ((some.inputs.shape[1], some.label_ids, some.lengths is None) for some in (self, other))
        if kind != others:
            return None
        names = ("inputs", "targets") if self.lengths is None else ("inputs", "targets", "lengths")
        both: dict[str, Any] = {name: torch.cat((getattr(self, name), getattr(other, name))) for name in names}
        return replace(self, **both)

    def split(self, size: int) -> Iterator["Batch"]:
        """The blocks in runs of at most `size`."""
        return (self[slice(start, start + size)] for start in range(0, len(self), size))


#: Blocks of different lengths and kinds.
Batches = tuple[Batch, ...]


def pack(texts: Sequence[Ids], *, length: int, eos: int) -> Batch:
    """Join token lists, each ended by `eos`, and cut the stream into blocks of `length` positions.

    Each token but the very first is predicted exactly once. Only the last block may be short; it is filled up
    with end tokens that are not predicted, and which no earlier position of a causal model sees. Raises
    BadRequest when there is no text.
    """
    stream = np.full(sum(len(text) + 1 for text in texts), eos, dtype=np.int64)
    place = 0
    for text in texts:
        stream[place : place + len(text)] = text
        place += len(text) + 1
    if len(stream) < 2:
        raise BadRequest(NO_TEXT)
    positions = len(stream) - 1
    count = -(-positions // length)
    inputs = np.full(count * length, eos, dtype=np.int64)
    targets = np.full(count * length, IGNORE_INDEX, dtype=np.int64)
    inputs[:positions], targets[:positions] = stream[:-1], stream[1:]
    return Batch(
        inputs=torch.from_numpy(inputs).view(count, length), targets=torch.from_numpy(targets).view(count, length)
    )


def batch_at(buckets: Batches, *, step: int, size: int, seed: int) -> Batch:
    """The batch of step `step` (from 1): at most `size` blocks of one bucket.

    An epoch shows every block once. It cuts each bucket, in an order drawn anew, into batches, of which only the
    bucket's last may be smaller than `size`, and shows the batches of all buckets in an order drawn anew.
    A pure function of its arguments, so a resumed run sees what an undisturbed run would have seen.
    """
    counts = tuple(len(bucket) for bucket in buckets)
    batches = [-(-count // size) for count in counts]
    epoch, place = divmod(step - 1, sum(batches))
    shown, orders = _epoch(counts, size, seed, epoch)
    number = int(shown[place])
    bucket = 0
    while number >= batches[bucket]:
        number -= batches[bucket]
        bucket += 1
    return buckets[bucket][torch.from_numpy(orders[bucket][number * size : (number + 1) * size])]


def shuffled(buckets: Batches, *, size: int, seed: int) -> Callable[[int], Batch]:
    """What gives the batch of each step; see `batch_at`."""
    return lambda step: batch_at(buckets, step=step, size=size, seed=seed)


@lru_cache(maxsize=1)
def _epoch(
    counts: tuple[int, ...], size: int, seed: int, epoch: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """The order of the batches, which are numbered bucket after bucket, and the order of each bucket's blocks."""
    orders = [_order(count, seed, epoch, _ORDER_STREAM + 1 + bucket) for bucket, count in enumerate(counts)]
    return _order(sum(-(-count // size) for count in counts), seed, epoch, _ORDER_STREAM), orders


def _order(count: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    # Ranks of raw words rather than Generator.permutation, whose stream NumPy does not promise to keep.
    return np.argsort(philox(seed, epoch, stream).random_raw(count), kind="stable")
