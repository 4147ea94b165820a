"""Batches of token blocks; the batch of a step is a pure function of (seed, step)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketllm.engine.errors import BadRequest
from pocketllm.engine.noise import philox

#: Target of a position without a loss, such as padding.
IGNORE_INDEX = -100
#: A text's token ids.
Ids = Sequence[int] | NDArray[np.int32]

NO_TEXT = "There is no text to train on. Add some with POST /texts."

#: The generator's stream for the order of the batches; those for the buckets' orders follow. The noise uses streams
#: from 0 up.
_ORDER_STREAM = 2**62


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Blocks of token ids, all equally long, with the target of each position."""

    inputs: torch.Tensor  #: (blocks, tokens) int64
    targets: torch.Tensor  #: (blocks, tokens) int64, IGNORE_INDEX where there is no loss
    #: Token ids of the label words, over which the softmax runs. None: the whole vocabulary.
    label_ids: tuple[int, ...] | None = None
    lengths: torch.Tensor | None = None  #: (blocks,) int64, tokens without padding. None: no mask is needed

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice | torch.Tensor) -> "Batch":
        lengths = None if self.lengths is None else self.lengths[rows]
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows], lengths=lengths)

    @property
    def target_counts(self) -> torch.Tensor:
        """(blocks,): the number of targets in each block."""
        return (self.targets != IGNORE_INDEX).sum(1)

    @property
    def tokens(self) -> int:
        """The number of targets."""
        return int(self.target_counts.sum())

    def repeat(self, count: int) -> "Batch":
        """All blocks, `count` times."""
        inputs, targets = self.inputs.repeat(count, 1), self.targets.repeat(count, 1)
        lengths = None if self.lengths is None else self.lengths.repeat(count)
        return replace(self, inputs=inputs, targets=targets, lengths=lengths)

    @property
    def kind(self) -> tuple[int, tuple[int, ...] | None, bool]:
        """What the blocks of a batch have in common: length, labels, and whether all are without padding."""
        return self.inputs.shape[1], self.label_ids, self.lengths is None

    def concatenated(self, *others: "Batch") -> "Batch":
        """These blocks followed by the other ones, which are of the same kind."""
        names = ("inputs", "targets") if self.lengths is None else ("inputs", "targets", "lengths")
        every: dict[str, Any] = {name: torch.cat([getattr(some, name) for some in (self, *others)]) for name in names}
        return replace(self, **every)

    def split(self, size: int) -> Iterator["Batch"]:
        """Yield the blocks in batches of at most `size`."""
        return (self[slice(start, start + size)] for start in range(0, len(self), size))

    def rounded(self) -> "Batch":
        """The same blocks, and as many without targets as make their number a power of two.

        torch compiles products for each new shape, and keeps that: some MB each. Texts of many lengths in many numbers
        took more than the training itself, until memory ran out.
        """
        more = next_power_of_two(len(self)) - len(self)
        if not more:
            return self
        empty = self[torch.zeros(more, dtype=torch.long)]
        return self.concatenated(replace(empty, targets=torch.full_like(empty.targets, IGNORE_INDEX)))


#: Blocks of several lengths and kinds, a bucket each.
Batches = tuple[Batch, ...]


def pack(texts: Sequence[Ids], *, length: int, eos: int, start: Ids = ()) -> Batch:
    """Concatenate token lists, each followed by `eos`, and cut the stream into blocks of `length` positions.

    Each block begins with `start`. Each token is a target exactly once, but for the first where no `start` is before
    it. The last block is padded with `eos`, without targets. Raises BadRequest when there is no text.
    """
    stream = np.full(sum(len(text) + 1 for text in texts), eos, dtype=np.int64)
    place = 0
    for text in texts:
        stream[place : place + len(text)] = text
        place += len(text) + 1
    if len(stream) < 2:
        raise BadRequest(NO_TEXT)
    if len(start):
        return _after(np.asarray(start, dtype=np.int64), stream, length, eos)
    positions = len(stream) - 1
    count = -(-positions // length)
    inputs = np.full(count * length, eos, dtype=np.int64)
    targets = np.full(count * length, IGNORE_INDEX, dtype=np.int64)
    inputs[:positions], targets[:positions] = stream[:-1], stream[1:]
    return Batch(
        inputs=torch.from_numpy(inputs).view(count, length), targets=torch.from_numpy(targets).view(count, length)
    )


def _after(start: NDArray[np.int64], stream: NDArray[np.int64], length: int, pad: int) -> Batch:
    """The stream in blocks that each begin with `start`, whose last token predicts the block's first one."""
    width = length - len(start) + 1
    count = -(-len(stream) // width)
    inputs = np.full((count, width), pad, dtype=np.int64)
    targets = np.full((count, length), IGNORE_INDEX, dtype=np.int64)
    inputs.reshape(-1)[: len(stream)] = stream
    after = np.full(count * width, IGNORE_INDEX, dtype=np.int64)
    after[: len(stream)] = stream
    targets[:, len(start) - 1 :] = after.reshape(count, width)
    inputs = np.concatenate([np.tile(start, (count, 1)), inputs[:, :-1]], 1)
    return Batch(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets))


def batch_at(buckets: Batches, *, step: int, size: int, seed: int) -> Batch:
    """The batch of step `step` (from 1): at most `size` blocks of one bucket.

    An epoch contains every block once. It shuffles each bucket, cuts it into batches (only the last may be smaller than
    `size`), and shuffles the batches of all buckets. A pure function of its arguments, so a resumed run gets the same
    batches as an undisturbed one.
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
    """A function from a step to its batch; see `batch_at`."""
    return lambda step: batch_at(buckets, step=step, size=size, seed=seed)


@lru_cache(maxsize=1)
def _epoch(
    counts: tuple[int, ...], size: int, seed: int, epoch: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """The order of the batches, numbered bucket after bucket, and the order of each bucket's blocks."""
    orders = [_order(count, seed, epoch, _ORDER_STREAM + 1 + bucket) for bucket, count in enumerate(counts)]
    return _order(sum(-(-count // size) for count in counts), seed, epoch, _ORDER_STREAM), orders


def _order(count: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    # Not Generator.permutation, whose stream may change between NumPy versions.
    return np.argsort(philox(seed, epoch, stream).random_raw(count), kind="stable")


def power_of_two(most: int) -> int:
    """The largest power of two that is at most `most`, and at least 1."""
    return 1 << max(1, most).bit_length() - 1


def next_power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()
