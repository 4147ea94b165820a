"""What a tokenizer puts before every text stands before every block, row and prompt; where it puts nothing, nothing."""

import pytest
import torch

from pocketllm.engine.data.batches import IGNORE_INDEX, Batches
from pocketllm.engine.data.examples import Example, encode
from pocketllm.engine.formats.tokenizer import eos_id, start_ids
from tests.support.models.tiny_models import beginning_with, byte_tokenizer

STARTED = beginning_with("<|im_start|>")
START, EOS = start_ids(STARTED), eos_id(STARTED)
LONG = "Wind west, glass rising. Mug of tea. " * 6


def encoded(*examples: Example, start: tuple[int, ...] = START) -> Batches:
    return encode(examples, STARTED, length=32, eos=EOS, start=start)


def targets(buckets: Batches) -> list[int]:
    return [token for bucket in buckets for token in bucket.targets[bucket.targets != IGNORE_INDEX].tolist()]


def test_it_is_what_the_tokenizer_adds() -> None:
    assert (STARTED.convert_tokens_to_ids("<|im_start|>"),) == START
    assert start_ids(byte_tokenizer()) == ()


@pytest.mark.parametrize(
    "example", [Example(LONG), Example(LONG, "glass falling"), Example("glass", LONG), Example("", LONG)]
)
def test_each_block_and_row_begins_with_it_and_each_token_is_a_target_once(example: Example) -> None:
    for bucket in encoded(example):
        assert (bucket.inputs[:, 0] == START[0]).all()
    once = targets(encoded(example, start=()))
    if example.completion is None:  # of plain text the first token, too
        once = [*STARTED(LONG[0], add_special_tokens=False)["input_ids"], *once]
    assert targets(encoded(example)) == once


def test_a_row_that_has_room_is_as_it_was_but_for_it() -> None:
    [row], [before] = (encoded(Example("glass", " rising"), start=start) for start in (START, ()))
    assert before.inputs[0, 0] == EOS
    assert torch.equal(row.inputs[:, 1:], before.inputs[:, 1:]) and torch.equal(row.targets, before.targets)
