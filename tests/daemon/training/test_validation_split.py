"""The validation split of a text, and how often it is checked."""

from pocketllm.daemon.training.validation_split import (
    CHECK_SHARE,
    MAX_BLOCKS,
    MIN_INTERVAL,
    ONE_IN,
    split,
    validation_interval,
)
from pocketllm.engine.data.batches import IGNORE_INDEX, Batch
from tests.support.models.numbered_blocks import numbered_blocks


def test_every_block_is_in_exactly_one_part() -> None:
    validated: dict[tuple[int, ...], list[int]] = {
        # Of blocks with a target each as many as it takes to tell, but no more than one in five.
        (2,): [1],
        (5,): [1],
        (11,): [2],
        (23,): [4],
        (1000,): [200],
        (10_000,): [250],  # one in 40
        (24, 13): [4, 2],
        (3, 1, 2): [1, 0, 1],
        (1000, 1000): [90, 76],
        # Of blocks with 60 targets one in twelve, where there are many, and MAX_BLOCKS at most.
        (0,) * 59 + (20,): [0] * 59 + [4],
        (0,) * 59 + (40,): [0] * 59 + [4],
        (0,) * 59 + (2 * ONE_IN * 4,): [0] * 59 + [8],
        (0,) * 59 + (10 * MAX_BLOCKS * ONE_IN,): [0] * 59 + [MAX_BLOCKS],
        (2,) * 30: [1] * MAX_BLOCKS + [0] * 6,
    }
    for counts, expected in validated.items():
        parts = split(numbered_blocks(*counts))
        of_length = {blocks.inputs.shape[1]: len(blocks) for blocks in parts[1]}
        assert [of_length.get(length, 0) for length in range(1, len(counts) + 1)] == expected, counts
        assert all(len(blocks) for part in parts for blocks in part), counts
        first_tokens = [token for part in parts for blocks in part for token in blocks.inputs[:, 0].tolist()]
        assert sorted(first_tokens) == list(range(sum(counts))), counts
        assert parts[0], "there is always something to learn from"


def test_a_single_block_is_both() -> None:
    ((training,), (validation,)) = split(numbered_blocks(1))
    assert training.inputs.tolist() == validation.inputs.tolist() == [[0]]


def test_validation_blocks_are_spread_evenly() -> None:
    (_, (validation,)) = split(numbered_blocks(60))
    assert validation.inputs[:, 0].tolist() == [4, 9, 14, 19, 24, 29, 34, 39, 44, 49, 54, 59]


def test_blocks_without_targets_decide_nothing() -> None:
    (blocks,) = numbered_blocks(2)
    targets = blocks.targets.clone()
    targets[1] = IGNORE_INDEX
    _, validation = split((Batch(inputs=blocks.inputs, targets=targets),))
    assert sum(some.tokens for some in validation) == 1


def test_a_check_takes_a_small_share_of_the_steps_between() -> None:
    """57 blocks are checked once, 8 a step twice."""
    parts = split(numbered_blocks(MAX_BLOCKS * ONE_IN))
    every = validation_interval(*parts, batch=8, points=2)
    assert every == 72
    assert sum(map(len, parts[1])) / (every * 16) <= CHECK_SHARE
    assert validation_interval(*parts, batch=8, points=64) == MIN_INTERVAL  # steps cost more than checks
    assert validation_interval(*split(numbered_blocks(5)), batch=1000, points=2) == MIN_INTERVAL
