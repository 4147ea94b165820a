import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketllm.mezo.batches import batch_at, pack
from pocketllm.mezo.errors import BadRequest
from pocketllm.mezo.loss import NO_TARGET

texts = st.lists(st.lists(st.integers(1, 100), max_size=30), min_size=1, max_size=10)


@given(texts=texts, length=st.integers(1, 40))
def test_every_token_but_the_first_is_predicted_exactly_once(texts: list[list[int]], length: int) -> None:
    stream = [token for text in texts for token in [*text, 0]]
    if len(stream) < 2:
        return
    blocks = pack(texts, length=length, separator=0)
    predicted = blocks.targets.flatten()
    assert predicted[predicted != NO_TARGET].tolist() == stream[1:]
    assert blocks.inputs.flatten()[: len(stream) - 1].tolist() == stream[:-1]
    assert blocks.tokens == len(stream) - 1
    # No more padding than the last block needs.
    assert len(blocks) == -(-(len(stream) - 1) // length)


@pytest.mark.parametrize("texts", [[], [[]]])
def test_no_text_is_refused(texts: list[list[int]]) -> None:
    with pytest.raises(BadRequest, match="no text to learn from"):
        pack(texts, length=8, separator=0)


def test_one_token_is_enough() -> None:
    blocks = pack([[7]], length=8, separator=0)
    assert blocks.inputs.tolist() == [[7, 0, 0, 0, 0, 0, 0, 0]]
    assert blocks.tokens == 1


def test_an_epoch_shows_every_block_once() -> None:
    blocks = pack([list(range(1, 101))], length=4, separator=0)
    size = 5
    assert len(blocks) % size == 0
    for epoch in range(3):
        steps = range(epoch * len(blocks) // size + 1, (epoch + 1) * len(blocks) // size + 1)
        seen = torch.cat([batch_at(blocks, step=s, size=size, seed=0).inputs[:, 0] for s in steps])
        assert sorted(seen.tolist()) == sorted(blocks.inputs[:, 0].tolist())


def test_batch_depends_on_step_and_seed_alone() -> None:
    blocks = pack([list(range(1, 101))], length=4, separator=0)
    again = [batch_at(blocks, step=7, size=4, seed=1).inputs for _ in range(2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], batch_at(blocks, step=7, size=4, seed=2).inputs)
    assert not torch.equal(again[0], batch_at(blocks, step=8, size=4, seed=1).inputs)


def test_batch_is_never_larger_than_the_text() -> None:
    blocks = pack([[1, 2, 3]], length=2, separator=0)
    assert len(batch_at(blocks, step=5, size=64, seed=0)) == len(blocks)
