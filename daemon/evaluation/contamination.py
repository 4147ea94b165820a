"""Held-out text that stands in the text that is learned, too: what a model makes of it shows memory, not learning.

One text in ten is held out, so of a sentence that came in a thousand times, each time in a slightly different text, a
hundred are measured with. They are no hundred proofs.
"""

import numpy as np
from numpy.typing import NDArray

from pocketllm.engine.data.batches import Batch, Batches
from pocketllm.engine.streamed.loss import IGNORE_INDEX

#: A run of so many tokens, about two lines of a note, is hardly written twice by chance.
RUN = 12
#: A block repeats what is learned when more than this part of what is measured in it lies in such runs.
MOST = 0.5

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no token is lost in a product modulo 2^64


def repeated(learned: Batches, measured: Batches, *, is_mlm: bool) -> list[bool]:
    """Of each measured block, in order, whether it repeats what is learned. is_mlm: the model fills in masks."""
    known = np.unique(np.concatenate([_runs(_tokens(blocks, is_mlm)[0]).reshape(-1) for blocks in learned]))
    return [repeats for blocks in measured for repeats in _repeated(blocks, known, is_mlm)]


def _repeated(blocks: Batch, known: NDArray[np.uint64], is_mlm: bool) -> list[bool]:
    tokens, counts = _tokens(blocks, is_mlm)
    seen = np.isin(_runs(tokens), known)
    inside = np.zeros(tokens.shape, dtype=bool)
    for place in range(RUN):
        inside[:, place : place + seen.shape[1]] |= seen
    shares = (inside & counts).sum(1) / np.maximum(1, counts.sum(1))
    repeats: list[bool] = (shares > MOST).tolist()
    return repeats


def _tokens(blocks: Batch, is_mlm: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Each block's tokens as they were written, and which of them are measured."""
    inputs, targets = blocks.inputs.numpy(), blocks.targets.numpy()
    first = 0 if is_mlm else 1  # a causal model predicts the token behind
    tokens, counts = np.pad(inputs, ((0, 0), (0, first))), np.pad(targets != IGNORE_INDEX, ((0, 0), (first, 0)))
    tokens[counts] = targets[targets != IGNORE_INDEX]
    return tokens, counts


def _runs(tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(blocks, places): a number for the run that begins at each place, the same for the same run."""
    count = max(0, tokens.shape[1] - RUN + 1)
    numbers = np.zeros((len(tokens), count), dtype=np.uint64)
    for place in range(RUN):
        numbers = (numbers + tokens[:, place : place + count].astype(np.uint64) + np.uint64(1)) * _FACTOR
        numbers ^= numbers >> np.uint64(32)
    return numbers
