"""The validation split: blocks of a job's text that are not trained on, for early stopping."""

from math import ceil

import torch

from pocketllm.engine.data.batches import Batch, Batches

#: One block in 12, at most 24. Where blocks have few targets, such as labelled texts with one each: as many as have 256
#: targets together, but at most one in 5.
ONE_IN, MAX_BLOCKS, MIN_TARGETS, MAX_ONE_IN = 12, 24, 256, 5
#: The longest time of a check, as a part of the steps between two checks; and the fewest steps between them.
CHECK_SHARE, MIN_INTERVAL = 0.05, 10


def split(buckets: Batches) -> tuple[Batches, Batches]:
    """Split into training and validation blocks, the latter spread evenly over each bucket. A single block is both."""
    training: list[Batch] = []
    validation: list[Batch] = []
    count = max(1, sum(len(blocks) for blocks in buckets))
    enough = round(MIN_TARGETS / max(1.0, sum(blocks.tokens for blocks in buckets) / count))
    left = max(MAX_BLOCKS, enough)
    ratio = max(MAX_ONE_IN, min(ONE_IN, count // max(1, enough)))
    for blocks in buckets:
        one_in = max(2, min(ratio, len(blocks)), -(-len(blocks) // max(1, left)))
        validates = torch.arange(len(blocks)) % one_in == one_in - 1
        if left == 0:
            validates[:] = False
        left -= int(validates.sum())
        training.append(blocks[~validates])
        validation.append(blocks[validates])
    validation = [blocks for blocks in validation if blocks.tokens]
    return tuple(blocks for blocks in training if len(blocks)), tuple(validation) or buckets


def validation_interval(training: Batches, validation: Batches, *, batch: int, points: float) -> int:
    """The number of steps between two checks, so that checks take at most CHECK_SHARE of the time.

    batch: blocks a step; points: cost of a step in forward passes.
    """
    batches = sum(ceil(len(blocks) / batch) for blocks in training)
    a_step = points * sum(blocks.inputs.numel() for blocks in training) / max(1, batches)
    a_check = sum(blocks.inputs.numel() for blocks in validation)
    return max(MIN_INTERVAL, ceil(a_check / (CHECK_SHARE * max(1.0, a_step))))
