from collections import Counter

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, Batches, batch_at, pack
from pocketllm.engine.errors import BadRequest
from tests.support.models.numbered_blocks import numbered_blocks

texts = st.lists(st.lists(st.integers(1, 100), max_size=30), min_size=1, max_size=10)


def epoch_of(buckets: Batches, number: int, *, size: int, seed: int = 0) -> list[Batch]:
    """The batches of epoch `number` (from 0)."""
    batches = sum(-(-len(bucket) // size) for bucket in buckets)
    first = number * batches + 1
    return [batch_at(buckets, step=step, size=size, seed=seed) for step in range(first, first + batches)]


def tokens(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.inputs[:, 0] for batch in batches]).tolist()


class TestPack:
    @given(texts=texts, length=st.integers(1, 40))
    @example(texts=[[7]], length=8)  # one token is enough
    def test_every_token_but_the_first_is_predicted_exactly_once(self, texts: list[list[int]], length: int) -> None:
        stream = [token for text in texts for token in [*text, 0]]
        if len(stream) < 2:
            return
        blocks = pack(texts, length=length, eos=0)
        predicted = blocks.targets.flatten()
        assert predicted[predicted != IGNORE_INDEX].tolist() == stream[1:]
        assert blocks.inputs.flatten()[: len(stream) - 1].tolist() == stream[:-1]
        assert blocks.tokens == len(stream) - 1
        # No more padding than the last block needs.
        assert len(blocks) == -(-(len(stream) - 1) // length)

    @given(texts=texts, length=st.integers(3, 40), start=st.lists(st.integers(101, 103), min_size=1, max_size=2))
    def test_each_block_begins_as_every_text_does(self, texts: list[list[int]], length: int, start: list[int]) -> None:
        stream = [token for text in texts for token in [*text, 0]]
        if len(stream) < 2:
            return
        blocks = pack(texts, length=length, eos=0, start=start)
        assert blocks.inputs.shape == blocks.targets.shape == (len(blocks), length)
        assert (blocks.inputs[:, : len(start)] == torch.tensor(start)).all()
        assert blocks.targets[blocks.targets != IGNORE_INDEX].tolist() == stream
        assert (blocks.targets[:, : len(start) - 1] == IGNORE_INDEX).all()
        predicted = blocks.targets[:, len(start) - 1 : -1]
        seen = blocks.inputs[:, len(start) :]
        assert torch.equal(predicted[predicted != IGNORE_INDEX], seen[predicted != IGNORE_INDEX])

    @pytest.mark.parametrize("texts", [[], [[]]])
    def test_no_text_is_refused(self, texts: list[list[int]]) -> None:
        with pytest.raises(BadRequest, match="no text to train on"):
            pack(texts, length=8, eos=0)


class TestBlocks:
    blocks = Batch(
        inputs=torch.arange(6).view(3, 2),
        targets=torch.tensor([[1, 2], [3, IGNORE_INDEX], [5, IGNORE_INDEX]]),
        label_ids=(4, 5),
        lengths=torch.tensor([2, 1, 1]),
    )

    def test_a_part_keeps_its_choices_and_lengths(self) -> None:
        part = self.blocks[torch.tensor([2, 0])]
        assert part.label_ids == (4, 5)
        assert part.lengths is not None
        assert part.lengths.tolist() == [1, 2]
        assert part.target_counts.tolist() == [1, 2]

    def test_split_loses_nothing(self) -> None:
        first, last = self.blocks.split(2)
        assert torch.equal(torch.cat([first.inputs, last.inputs]), self.blocks.inputs)
        assert first.lengths is not None and last.lengths is not None
        assert [*first.lengths, *last.lengths] == [2, 1, 1]

    def test_rounded_its_blocks_are_a_power_of_two_and_its_targets_the_same(self) -> None:
        rounded = self.blocks.rounded()
        assert (len(rounded), rounded.tokens) == (4, self.blocks.tokens)
        assert torch.equal(rounded.inputs[:3], self.blocks.inputs) and rounded.label_ids == self.blocks.label_ids
        assert rounded.rounded() is rounded


class TestBatchAt:
    @given(
        counts=st.lists(st.integers(1, 20), min_size=1, max_size=4), size=st.integers(1, 9), number=st.integers(0, 3)
    )
    def test_an_epoch_shows_every_block_once(self, counts: list[int], size: int, number: int) -> None:
        batches = epoch_of(numbered_blocks(*counts), number, size=size)
        assert sorted(tokens(batches)) == list(range(sum(counts)))

    @given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=4), size=st.integers(1, 9))
    def test_only_the_last_batch_of_a_bucket_is_short(self, counts: list[int], size: int) -> None:
        batches = epoch_of(numbered_blocks(*counts), 0, size=size)
        for bucket, count in enumerate(counts):
            sizes = Counter(len(batch) for batch in batches if batch.inputs.shape[1] == bucket + 1)
            assert sizes == Counter([size] * (count // size) + [count % size] * (count % size > 0))

    def test_each_epoch_has_an_order_of_its_own(self) -> None:
        buckets = numbered_blocks(40, 40)
        first, second = (epoch_of(buckets, number, size=4) for number in range(2))
        assert tokens(first) != tokens(second)
        # The buckets take turns, and their blocks meet others.
        kinds = [batch.inputs.shape[1] for batch in first]
        assert kinds not in (sorted(kinds), [batch.inputs.shape[1] for batch in second])
        company = [{frozenset(batch.inputs[:, 0].tolist()) for batch in epoch} for epoch in (first, second)]
        assert company[0] != company[1]

    def test_buckets_of_a_size_have_orders_of_their_own(self) -> None:
        batches = epoch_of(numbered_blocks(20, 20), 0, size=20)
        orders = {batch.inputs.shape[1]: batch.inputs[:, 0] for batch in batches}
        assert not torch.equal(orders[1] + 20, orders[2])

    def test_order_is_the_same_on_every_machine_and_another_for_each_step_and_seed(self) -> None:
        buckets = numbered_blocks(8)
        assert tokens(epoch_of(buckets, 0, size=2)) == [4, 1, 0, 3, 7, 2, 6, 5]
        orders = {(*tokens([batch_at(buckets, step=step, size=8, seed=seed)]),) for step in (1, 2) for seed in (0, 1)}
        assert len(orders) == 4
