"""Contamination: held-out text that is also in the training text. A low loss on it shows memorisation, not learning.

One text in ten is held out. Of a sentence that occurs in a thousand texts, a hundred copies are held out, and prove
nothing.
"""

import numpy as np
from numpy.typing import NDArray

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, Batches

#: A run of this many tokens, about two lines of a note, rarely occurs twice by chance.
RUN = 12
#: A block is contaminated if more than this part of its targets is in runs that occur in training text.
MAX_SHARE = 0.5

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, hence invertible modulo 2^64


def repeated(learned: Batches, measured: Batches, *, is_mlm: bool) -> list[bool]:
    """Whether each held-out block, in order, repeats training text. is_mlm: whether targets are masked tokens."""
    known = np.unique(np.concatenate([_runs(_tokens(blocks, is_mlm)[0])[_whole(blocks, is_mlm)] for blocks in learned]))
    return [repeats for blocks in measured for repeats in _repeated(blocks, known, is_mlm)]


def _repeated(blocks: Batch, known: NDArray[np.uint64], is_mlm: bool) -> list[bool]:
    tokens, counts = _tokens(blocks, is_mlm)
    seen = np.isin(_runs(tokens), known) & _whole(blocks, is_mlm)
    inside = np.zeros(tokens.shape, dtype=bool)
    for place in range(RUN):
        inside[:, place : place + seen.shape[1]] |= seen
    shares = (inside & counts).sum(1) / np.maximum(1, counts.sum(1))
    repeats: list[bool] = (shares > MAX_SHARE).tolist()
    return repeats


def _tokens(blocks: Batch, is_mlm: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Each block's original tokens, and which of them are targets."""
    inputs, targets = blocks.inputs.numpy(), blocks.targets.numpy()
    first = 0 if is_mlm else 1  # a causal model predicts the next token
    tokens, counts = np.pad(inputs, ((0, 0), (0, first))), np.pad(targets != IGNORE_INDEX, ((0, 0), (first, 0)))
    tokens[counts] = targets[targets != IGNORE_INDEX]
    return tokens, counts


def _whole(blocks: Batch, is_mlm: bool) -> NDArray[np.bool_]:
    """(blocks, positions): whether the run that begins at each position is one of tokens alone, without padding."""
    width = blocks.inputs.shape[1] + (0 if is_mlm else 1)
    lengths = np.full(len(blocks), width) if blocks.lengths is None else blocks.lengths.numpy() + (0 if is_mlm else 1)
    whole: NDArray[np.bool_] = np.arange(max(0, width - RUN + 1)) + RUN <= lengths[:, None]
    return whole


def _runs(tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(blocks, positions): a hash of the run that begins at each position."""
    count = max(0, tokens.shape[1] - RUN + 1)
    numbers = np.zeros((len(tokens), count), dtype=np.uint64)
    for place in range(RUN):
        numbers = (numbers + tokens[:, place : place + count].astype(np.uint64) + np.uint64(1)) * _FACTOR
        numbers ^= numbers >> np.uint64(32)
    return numbers
