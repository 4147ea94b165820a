"""Which held-out blocks repeat what is learned."""

import random
from pathlib import Path

from pocketllm.daemon.evaluation.contamination import RUN, repeated
from pocketllm.engine.data.batches import Batch, Batches, pack
from pocketllm.engine.data.examples import Example, encode
from tests.support.models.learning import imported
from tests.support.models.tiny_models import byte_tokenizer

LENGTH = 32


def words(seed: int, count: int = 200) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(3, 250) for _ in range(count)]


def packed(*texts: list[int]) -> Batch:
    return pack(texts, length=LENGTH, eos=0)


def test_text_of_its_own_is_no_repeat() -> None:
    assert not any(repeated((packed(words(1)),), (packed(words(2)),), is_mlm=False))


def test_the_same_text_is_wherever_it_stands_in_the_blocks() -> None:
    learned = packed(words(1, 17), words(2), words(3))
    *whole, _short = repeated((learned,), (packed(words(2)),), is_mlm=False)
    assert all(whole)


def test_a_block_repeats_when_most_of_it_lies_in_runs_that_are_learned() -> None:
    for same, repeats in ((0, False), (RUN - 1, False), (LENGTH * 3 // 4, True)):
        mixed = words(1, same) + words(2, LENGTH - same)
        assert repeated((packed(words(1)),), (packed(mixed),), is_mlm=False)[0] is repeats, same


def test_one_sentence_with_a_number_before_it_is_a_repeat_each_time() -> None:
    sentence = words(1, 30)
    learned, measured = ([[number, *sentence] for number in numbers] for numbers in (range(3, 90), range(100, 120)))
    assert all(repeated((packed(*learned),), (packed(*measured),), is_mlm=False))


def test_blocks_keep_their_order_over_buckets_of_different_widths() -> None:
    measured = (packed(words(2)), pack([words(1)], length=LENGTH * 2, eos=0), packed(words(3)))
    found = repeated((packed(words(1)),), measured, is_mlm=False)
    first, second = len(measured[0]), len(measured[0]) + len(measured[1])
    assert not any(found[:first]) and any(found[first:second]) and not any(found[second:])


def pairs(*of: tuple[str, str]) -> Batches:
    return encode([Example(*one) for one in of], byte_tokenizer(), length=64, eos=2)


def test_of_a_completion_only_what_is_measured_counts() -> None:
    ask = "What do you say to a visitor? "
    learned = pairs((ask, "Good morning, come in."))
    assert repeated(learned, pairs((ask, "Leave at once!")), is_mlm=False) == [False]
    assert repeated(learned, pairs((ask, "Good morning, come in.")), is_mlm=False) == [True]


def test_padding_behind_a_short_answer_is_no_repeat() -> None:
    learned = pairs(("The invoice is due on Monday.", " paid"), ("Tea at five, at the ferry.", " kept"))
    measured = pairs(("A parcel waits at the yard.", " paid"))
    assert measured[0].lengths is not None
    assert repeated(learned, measured, is_mlm=False) == [False]


def test_what_is_hidden_behind_masks_is_put_back(root: Path) -> None:
    tokenizer = imported(root, "roberta", "float32").tokenizer()
    text = "Walked down to see whether the yard was still there, and it was; two mugs of tea, then home again at dusk."

    def is_mlm(seed: int) -> Batches:
        return encode([Example(text)], tokenizer, length=LENGTH, eos=0, is_mlm=True, seed=seed)

    assert all(repeated(is_mlm(1), is_mlm(2), is_mlm=True))
