"""Blocks of the text that are not learned from, and tell when a run has learned enough (mezo/patience.py)."""

from math import ceil

import torch

from pocketllm.mezo.batches import Blocks, Buckets

#: One block in so many is kept aside; so many at most. Where blocks have few targets, as labelled texts with one each,
#: as many as have so many targets in all, but no more than one in so many.
CHECK_ONE_IN, MOST_CHECK_BLOCKS, CHECK_TARGETS, CHECK_MOST_ONE_IN = 12, 24, 256, 5
#: How long the checks may take, in parts of the steps between them; and the fewest steps between them.
CHECK_SHARE, FEWEST_BETWEEN = 0.08, 10


def divide(buckets: Buckets) -> tuple[Buckets, Buckets]:
    """What is learned from, and what decides when to stop: blocks spread evenly over each bucket.

    A single block is both.
    """
    learned: list[Blocks] = []
    checked: list[Blocks] = []
    count = max(1, sum(len(blocks) for blocks in buckets))
    enough = round(CHECK_TARGETS / max(1.0, sum(blocks.tokens for blocks in buckets) / count))
    left = max(MOST_CHECK_BLOCKS, enough)
    wanted = max(CHECK_MOST_ONE_IN, min(CHECK_ONE_IN, count // max(1, enough)))
    for blocks in buckets:
        one_in = max(2, min(wanted, len(blocks)), -(-len(blocks) // max(1, left)))
        chosen = torch.arange(len(blocks)) % one_in == one_in - 1
        if left == 0:
            chosen[:] = False
        left -= int(chosen.sum())
        learned.append(blocks[~chosen])
        checked.append(blocks[chosen])
    checked = [blocks for blocks in checked if blocks.tokens]
    return tuple(blocks for blocks in learned if len(blocks)), tuple(checked) or buckets


def steps_between_checks(learned: Buckets, checked: Buckets, *, batch: int, points: int) -> int:
    """After how many steps a check takes no more than CHECK_SHARE of their time, by the tokens that are walked over.

    batch: blocks a step, each of which a step sees at so many points.
    """
    batches = sum(ceil(len(blocks) / batch) for blocks in learned)
    a_step = points * sum(blocks.inputs.numel() for blocks in learned) / max(1, batches)
    a_check = sum(blocks.inputs.numel() for blocks in checked)
    return max(FEWEST_BETWEEN, ceil(a_check / max(1.0, CHECK_SHARE * a_step)))
