from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from pocketllm.mezo.batches import Blocks, Buckets
from pocketllm.mezo.errors import BadRequest
from pocketllm.mezo.examples import MASKED_SHARE, WIDTH_STEP, Completion, Example, Labelled, Plain, encode
from pocketllm.mezo.loss import NO_TARGET
from pocketllm.mezo.templates import Template
from tests.tiny_architectures import masking_tokenizer
from tests.tiny_models import byte_tokenizer

CAUSAL = byte_tokenizer()
MASKED = masking_tokenizer()
SEPARATOR = 0
START, END, PAD, MASK = 1, 2, 2, MASKED.mask_token_id
#: Every word is a byte, so that it is a token.
MOOD = Template(pattern="{text} It was {label}!", words={"good": "+", "bad": "-"})
words = st.text(st.characters(codec="utf-8"), max_size=40)


def ids(text: str, tokenizer: PreTrainedTokenizerBase = CAUSAL) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def causal(*examples: Example, length: int = 16, template: Template | None = MOOD) -> Buckets:
    return encode(examples, CAUSAL, length=length, separator=SEPARATOR, template=template)


def masked(*examples: Example, length: int = 16, template: Template | None = MOOD, seed: int = 0) -> Buckets:
    return encode(
        examples, MASKED, length=length, separator=SEPARATOR, template=template, masked=True, seed=seed
    )  # fmt: skip


def predictions(buckets: Buckets) -> Iterator[tuple[list[int], int]]:
    """What a causal model reads before each token that it is to predict, and that token; row after row."""
    for blocks in buckets:
        for i, j in (blocks.targets != NO_TARGET).nonzero().tolist():
            yield blocks.inputs[i, : j + 1].tolist(), int(blocks.targets[i, j])


def lengths(blocks: Blocks) -> list[int]:
    full = torch.full((len(blocks),), blocks.inputs.shape[1])
    return (full if blocks.lengths is None else blocks.lengths).tolist()


class TestPlain:
    @given(texts=st.lists(words, max_size=5), length=st.integers(1, 20))
    def test_each_token_but_the_very_first_is_predicted_once(self, texts: list[str], length: int) -> None:
        stream = [token for text in texts if text for token in [*ids(text), SEPARATOR]]
        if not stream:
            return
        (blocks,) = causal(*(Plain(text=text) for text in texts), length=length)
        assert [token for _, token in predictions((blocks,))] == stream[1:]
        assert blocks.lengths is None and blocks.choices is None
        assert blocks.inputs.shape == (-(-(len(stream) - 1) // length), length)

    @pytest.mark.parametrize("masking", [False, True])
    def test_nothing_to_learn_from_is_refused(self, masking: bool) -> None:
        for examples in ((), (Plain(text=""), Plain(text=""))):
            with pytest.raises(BadRequest, match="no text to learn from"):
                masked(*examples) if masking else causal(*examples)


class TestMaskedPlain:
    @given(texts=st.lists(words, max_size=5), length=st.integers(3, 20), seed=st.integers(0, 2**63 - 1))
    def test_rows_hide_some_of_the_text_and_nothing_else(self, texts: list[str], length: int, seed: int) -> None:
        stream = [token for text in texts if text for token in [*ids(text, MASKED), SEPARATOR]][:-1]
        if not stream:
            return
        (blocks,) = masked(*(Plain(text=text) for text in texts), length=length, seed=seed)
        seen = []
        for row, targets, real in zip(blocks.inputs, blocks.targets, lengths(blocks), strict=True):
            assert row[0] == START and row[real - 1] == END
            assert (row[real:] == PAD).all()
            hidden = targets != NO_TARGET
            assert torch.equal(hidden, row == MASK)
            tokens = torch.where(hidden, targets, row)[1 : real - 1]
            candidates = int((tokens > END).sum())
            assert int(hidden.sum()) == max(1, round(MASKED_SHARE * candidates))
            assert (targets[hidden] > END).all()  # not the separator between two texts
            seen += tokens.tolist()
        if length > 3:  # a row of a separator alone has nothing to guess, so it is left out
            assert seen == stream
        assert sum(lengths(blocks)) >= blocks.inputs.numel() - length + 3

    def test_masks_depend_on_seed_and_place_alone(self) -> None:
        text = Plain(text="0123456789" * 20)
        first, again = (masked(text)[0] for _ in range(2))
        assert torch.equal(first.inputs, again.inputs)
        assert not torch.equal(first.inputs, masked(text, seed=1)[0].inputs)
        places = {tuple(row) for row in (first.targets[:-1] != NO_TARGET).tolist()}
        assert len(places) > 3

    def test_a_byte_can_be_guessed_without_anything_beside_it(self) -> None:
        (blocks,) = masked(Plain(text="a"))
        assert blocks.inputs[0, :3].tolist() == [START, MASK, END]
        assert lengths(blocks) == [3]

    def test_needs_room_and_special_tokens(self) -> None:
        with pytest.raises(BadRequest, match="Blocks of 2 tokens"):
            masked(Plain(text="abc"), length=2)
        with pytest.raises(BadRequest, match="no mask token"):
            encode([Plain(text="abc")], CAUSAL, length=8, separator=SEPARATOR, masked=True)

    def test_completions_are_refused(self) -> None:
        with pytest.raises(BadRequest, match="use plain or labelled text"):
            masked(Plain(text="a"), Completion(prompt="a", completion="b"))


class TestCompletion:
    @given(prompt=words, completion=words, length=st.integers(1, 24))
    def test_all_of_the_completion_is_predicted_once_behind_what_comes_before(
        self, prompt: str, completion: str, length: int
    ) -> None:
        if not prompt and not completion:
            return
        answer = [*ids(completion), SEPARATOR]
        stream = [SEPARATOR, *ids(prompt), *answer]
        seen = list(predictions(causal(Completion(prompt=prompt, completion=completion), length=length)))
        assert [token for _, token in seen] == answer
        first = len(stream) - len(answer)
        fits = len(answer) <= length
        for i, (context, _) in enumerate(seen, start=first):
            assert context == stream[i - len(context) : i]
            assert len(context) >= min(i, length // 2 + 1) or fits
        if fits:
            assert len(seen[0][0]) == min(first, length - len(answer) + 1)

    def test_the_prompt_is_cut_from_the_left_and_never_learned(self) -> None:
        (blocks,) = causal(Completion(prompt="0123456789", completion="abc"), length=8)
        assert blocks.inputs.tolist() == [ids("56789abc")]
        assert blocks.targets.tolist() == [[NO_TARGET] * 4 + [*ids("abc"), SEPARATOR]]
        assert blocks.lengths is None

    def test_rows_of_about_the_same_length_share_a_bucket(self) -> None:
        pairs = [Completion(prompt="p" * n, completion="c") for n in (3, 20, 7, 1, 12)]
        buckets = causal(*pairs, length=21)
        assert [blocks.inputs.shape for blocks in buckets] == [(2, 8), (2, 16), (1, 21)]
        assert lengths(buckets[0]) == [5, 3]  # in the order given
        assert buckets[2].lengths is None
        assert (buckets[0].inputs[1, 3:] == SEPARATOR).all()

    @given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=20), length=st.integers(1, 40))
    def test_a_row_has_fewer_pads_than_a_step(self, sizes: list[int], length: int) -> None:
        buckets = causal(*(Completion(prompt="p" * n, completion="c" * n) for n in sizes), length=length)
        for blocks in buckets:
            assert blocks.inputs.shape[1] <= length
            assert all(0 <= blocks.inputs.shape[1] - real < WIDTH_STEP for real in lengths(blocks))

    def test_an_empty_side_has_a_meaning_and_two_have_none(self) -> None:
        silent = causal(Completion(prompt="a", completion=""))
        assert list(predictions(silent)) == [([SEPARATOR, *ids("a")], SEPARATOR)]
        unasked = causal(Completion(prompt="", completion="b"))
        assert list(predictions(unasked)) == [([SEPARATOR], ids("b")[0]), ([SEPARATOR, *ids("b")], SEPARATOR)]
        with pytest.raises(BadRequest, match="no text to learn from"):
            causal(Completion(prompt="", completion=""))


class TestLabelled:
    def test_the_label_is_predicted_from_all_before_it(self) -> None:
        (blocks,) = causal(Labelled(text="Fine", label="good"), Labelled(text="Ugh", label="bad"), length=32)
        assert list(predictions((blocks,))) == [
            ([SEPARATOR, *ids("Fine It was ")], ids("+")[0]),
            ([SEPARATOR, *ids("Ugh It was ")], ids("-")[0]),
        ]
        assert blocks.choices == (ids("-")[0], ids("+")[0])  # bad, good
        assert lengths(blocks) == [13, 12]

    def test_a_masked_model_sees_what_stands_behind_too(self) -> None:
        (blocks,) = masked(Labelled(text="Fine", label="good"), length=32)
        row, before = blocks.inputs[0].tolist(), ids("Fine It was ", MASKED)
        assert row[: lengths(blocks)[0]] == [START, *before, MASK, *ids("!", MASKED), END]
        assert (blocks.targets[0] != NO_TARGET).nonzero().tolist() == [[1 + len(before)]]
        assert blocks.targets.max() == ids("+")[0]
        assert blocks.choices == (ids("-")[0], ids("+")[0])

    def test_a_masked_model_may_have_the_label_in_front(self) -> None:
        template = Template(pattern="{label}: {text}.", words={"good": "+", "bad": "-"})
        (blocks,) = masked(Labelled(text="abcdef", label="bad"), template=template, length=9)
        assert blocks.inputs.tolist() == [[START, MASK, *ids(": abc.", MASKED), END]]
        assert blocks.targets[0, 1] == ids("-")[0]
        with pytest.raises(BadRequest, match="Write it in front"):
            causal(Labelled(text="abc", label="bad"), template=template)

    @given(text=words, length=st.integers(8, 30))
    def test_the_text_is_cut_from_its_end_and_the_pattern_never(self, text: str, length: int) -> None:
        (blocks,) = causal(Labelled(text=text, label="good"), length=length + 1)
        tail = ids(" It was ")
        ((context, token),) = predictions((blocks,))
        assert context == [SEPARATOR, *ids(text)[: length - len(tail)], *tail]
        assert token == ids("+")[0]
        (blocks,) = masked(Labelled(text=text, label="good"), length=length + 4)
        row = blocks.inputs[0, : lengths(blocks)[0]].tolist()
        assert row == [START, *ids(text)[: length - len(tail)], *tail, MASK, *ids("!"), END]

    @pytest.mark.parametrize("text", ["{label}", "{text}", "<mask>", "x{label}{text}<mask>"])
    def test_a_text_may_look_like_a_pattern(self, text: str) -> None:
        (blocks,) = masked(Labelled(text=text, label="good"), length=64)
        before = [START, *ids(text, MASKED), *ids(" It was ", MASKED)]
        assert blocks.inputs[0, : len(before) + 1].tolist() == [*before, MASK]
        assert (blocks.targets[0] != NO_TARGET).nonzero().tolist() == [[len(before)]]

    def test_an_empty_text_leaves_the_pattern_and_an_empty_pattern_the_separator(self) -> None:
        seen = list(predictions(causal(Labelled(text="", label="good"))))
        assert seen == [([SEPARATOR, *ids(" It was ")], ids("+")[0])]
        bare = Template(pattern="{text}{label}", words=MOOD.words)
        (blocks,) = causal(Labelled(text="", label="good"), template=bare, length=1)
        assert list(predictions((blocks,))) == [([SEPARATOR], ids("+")[0])]
        assert blocks.inputs.shape == (1, 1)

    def test_too_long_a_pattern_is_refused(self) -> None:
        with pytest.raises(BadRequest, match="pattern alone is 8 tokens, and a block has room for 6"):
            causal(Labelled(text="abc", label="good"), length=7)

    def test_needs_a_template_that_knows_the_label(self) -> None:
        with pytest.raises(BadRequest, match="no template"):
            causal(Labelled(text="a", label="good"), template=None)
        with pytest.raises(BadRequest, match="label 'so-so', but the template's are bad, good"):
            causal(Labelled(text="a", label="so-so"))


def test_kinds_do_not_mix_and_each_keeps_its_order() -> None:
    examples: list[Example] = [
        Labelled(text="x", label="good"),
        Plain(text="plain one"),
        Completion(prompt="p", completion="c"),
        Plain(text="plain two"),
        Labelled(text="y", label="bad"),
    ]
    mixed, sorted_by_kind = causal(*examples), causal(*sorted(examples, key=lambda e: type(e).__name__, reverse=True))
    assert [blocks.choices is None for blocks in mixed] == [True, True, False]
    for a, b in zip(mixed, sorted_by_kind, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


def test_thousands_of_texts_longer_than_the_models_context_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 4
    examples = [Plain(text="more than four")] * 1500 + [Labelled(text="more than four", label="good")]
    plain, _ = encode(examples, tokenizer, length=1024, separator=SEPARATOR, template=MOOD)
    assert plain.tokens == 1500 * 15 - 1
    assert not caplog.records
