"""The validation split: blocks of a job's text that are not learned from, for early stopping."""

from math import ceil

import torch

from pocketllm.engine.data.batches import Batch, Batches

#: One block in 12, at most 24. Where blocks have few targets, as labelled texts with one each: as many as have 256 in
#: all, but no more than one in 5.
ONE_IN, MAX_BLOCKS, MIN_TARGETS, MAX_ONE_IN = 12, 24, 256, 5
#: How long a check may take, as a part of the steps between two; and the fewest steps between them.
CHECK_SHARE, MIN_INTERVAL = 0.08, 10


def split(buckets: Batches) -> tuple[Batches, Batches]:
    """Training and validation blocks; the latter spread evenly over each bucket.

    A single block is both.
    """
    training: list[Batch] = []
    validation: list[Batch] = []
    count = max(1, sum(len(blocks) for blocks in buckets))
    enough = round(MIN_TARGETS / max(1.0, sum(blocks.tokens for blocks in buckets) / count))
    left = max(MAX_BLOCKS, enough)
    one_in_wanted = max(MAX_ONE_IN, min(ONE_IN, count // max(1, enough)))
    for blocks in buckets:
        one_in = max(2, min(one_in_wanted, len(blocks)), -(-len(blocks) // max(1, left)))
        chosen = torch.arange(len(blocks)) % one_in == one_in - 1
        if left == 0:
            chosen[:] = False
        left -= int(chosen.sum())
        training.append(blocks[~chosen])
        validation.append(blocks[chosen])
    validation = [blocks for blocks in validation if blocks.tokens]
    return tuple(blocks for blocks in training if len(blocks)), tuple(validation) or buckets


def validation_interval(training: Batches, validation: Batches, *, batch: int, points: float) -> int:
    """Steps between two checks, which then take no more than CHECK_SHARE of the time.

    batch: blocks a step; points: forward passes that a step takes as long as.
    """
    batches = sum(ceil(len(blocks) / batch) for blocks in training)
    a_step = points * sum(blocks.inputs.numel() for blocks in training) / max(1, batches)
    a_check = sum(blocks.inputs.numel() for blocks in validation)
    return max(MIN_INTERVAL, ceil(a_check / max(1.0, CHECK_SHARE * a_step)))
