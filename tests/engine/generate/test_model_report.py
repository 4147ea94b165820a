"""What a model has learned: what is looked at, and that what is found is what the model says."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, Batches, pack
from pocketllm.engine.data.examples import Example, encode
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.generate.model_report import (
    ANSWER_TOKENS,
    MAX_BLOCKS,
    MAX_TOKENS,
    PROMPT_TOKENS,
    PROMPTS,
    VERBATIM_TOKENS,
    Sample,
    compare,
    observe,
    sample,
)
from pocketllm.engine.generate.sampling import greedy
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import imported, some_adapter, transformers_model
from tests.support.models.tiny_models import VOCABULARY, byte_tokenizer

EOS = 0
NOTES = [f"Wind west, glass rising. Mug of tea number {number}." for number in range(20)]


def chosen(learned: Batches = (), held_out: Batches = (), *, is_mlm: bool = False) -> Sample:
    return sample(learned, held_out, eos=EOS, start=(), stop_ids=frozenset({EOS}), is_mlm=is_mlm)


def encoded(*examples: Example, length: int = 32) -> Batches:
    return encode(examples, byte_tokenizer(), length=length, eos=EOS)


def notes(*, length: int = 32) -> Batches:
    return encoded(*(Example(note) for note in NOTES), length=length)


def numbers(*counts: int) -> list[list[int]]:
    """Texts of so many tokens, each token another one."""
    texts, first = [], 3
    for count in counts:
        texts.append(list(range(first, first + count)))
        first += count
    return texts


class TestSample:
    @pytest.mark.parametrize(
        ("counts", "length", "continued"),
        [
            ((30, 40, 50), 128, [(0, 0, PROMPT_TOKENS), (1, 0, PROMPT_TOKENS), (2, 0, PROMPT_TOKENS)]),
            ((10, 4, 7), 64, [(0, 0, 5), (2, 0, 3)]),  # of short texts half, and of shorter ones nothing
            # Long beginnings come first, and from all over the text.
            ((8, *[26] * 9), 256, [(1, 0, PROMPT_TOKENS), (4, 0, PROMPT_TOKENS), (7, 0, PROMPT_TOKENS)]),
            # Of a text of several rows each row is a beginning.
            ((100,), 25, [(0, start, start + PROMPT_TOKENS) for start in (0, 25, 50)]),
            ((30,), 200, [(0, 0, PROMPT_TOKENS)]),  # the filling of the last row is no text
            ((), 128, []),
        ],
    )
    def test_beginnings_of_plain_texts_are_continued(
        self, counts: tuple[int, ...], length: int, continued: list[tuple[int, int, int]]
    ) -> None:
        """continued: the number of a text, and which of its tokens are a prompt."""
        texts = numbers(*counts)
        held_out = (pack(texts, length=length, eos=EOS),) if texts else ()
        found = chosen(held_out=held_out).prompts
        assert found == [texts[number][start:stop] for number, start, stop in continued]

    def test_of_a_completion_its_prompt_is_gone_on_with(self) -> None:
        found = chosen(held_out=encoded(Example("Q: two?", "2")))
        assert byte_tokenizer().decode(found.prompts[0]) == "Q: two?"

    def test_few_blocks_from_all_over_the_text(self) -> None:
        blocks = pack(numbers(*[10] * 1000), length=16, eos=EOS)
        [taken] = chosen(learned=(blocks,)).learned
        assert len(taken) == MAX_BLOCKS
        rows = [(blocks.inputs == row).all(1).nonzero()[0, 0].item() for row in taken.inputs]
        assert rows == [number * len(blocks) // MAX_BLOCKS for number in range(MAX_BLOCKS)]

    def test_of_long_blocks_fewer_and_of_very_long_ones_the_beginnings(self) -> None:
        for length in (200, 1500, 4096):
            blocks = pack([[5] * 40_000], length=length, eos=EOS)
            [taken] = chosen(learned=(blocks,)).learned
            assert 0.5 * MAX_TOKENS < taken.inputs.numel() <= MAX_TOKENS, length

    def test_blocks_of_all_buckets(self) -> None:
        buckets = encoded(*(Example(text) for text in NOTES[:8]), Example("Q", "A"))
        assert [taken.inputs.shape[1] for taken in chosen(learned=buckets).learned] == [32, 16]

    def test_places_have_text_before_and_behind(self) -> None:
        size = VERBATIM_TOKENS
        for count, places in ((2 * size - 1, 0), (2 * size, 1), (2 * size + 3, 4)):
            assert chosen(learned=(pack(numbers(count), length=128, eos=EOS),)).places == places
        two = pack(numbers(size, size + 2), length=128, eos=EOS)  # what follows must be of one text
        assert chosen(learned=(two,)).places == 3
        assert chosen(learned=(pack(numbers(100), length=size, eos=EOS),)).places == 0


@pytest.fixture(scope="module")
def model(tiny: ModelFolder) -> LanguageModel:
    return LanguageModel(tiny)


class TestObserve:
    def test_mean_probabilities_are_those_of_transformers(self, tiny: ModelFolder) -> None:
        found = chosen(held_out=notes())
        [blocks] = found.held_out
        logits = transformers_model(tiny.path, dtype=torch.float32)(blocks.inputs).logits
        wanted = logits[blocks.targets != IGNORE_INDEX].softmax(1).mean(0)
        for logit_bytes in (1, 50_000, 2**24):
            observed = observe(LanguageModel(tiny), found, 4, logit_bytes=logit_bytes)
            assert observed.probabilities is not None
            torch.testing.assert_close(observed.probabilities, wanted, atol=1e-6, rtol=1e-4)

    def test_what_the_model_says_by_itself_is_repeated_and_other_text_is_not(self, tiny: ModelFolder) -> None:
        model = LanguageModel(tiny)
        begun = [5, 60, 70, 80, 100, 200, 7, 9, 11]
        own = begun + greedy(model, begun, stop_ids=(), max_tokens=20)
        eos = next(token for token in range(VOCABULARY) if token not in own)
        spoiled = [*own[:-1], own[-1] - 1]
        for text, recalled in ((own, 20 - VERBATIM_TOKENS + 1), (spoiled, 20 - VERBATIM_TOKENS)):
            found = sample((as_block(text),), (), eos=eos, start=(), stop_ids=frozenset(), is_mlm=False)
            assert (found.places, observe(model, found, 4).recalled) == (14, recalled)

    def test_answers_are_greedy_and_end_with_the_text(self, model: LanguageModel) -> None:
        found = chosen(held_out=notes(length=64))
        assert len(found.prompts) == PROMPTS
        observed = observe(model, found, 4)
        for prompt, answer in zip(found.prompts, observed.answers, strict=True):
            assert answer == greedy(model, [EOS, *prompt], stop_ids={EOS}, max_tokens=ANSWER_TOKENS)


class TestGreedy:
    def test_it_stops_before_an_end(self, model: LanguageModel) -> None:
        whole = greedy(model, [5, 60], stop_ids=(), max_tokens=10)
        assert len(whole) == 10
        assert greedy(model, [5, 60], stop_ids={whole[3]}, max_tokens=10) == whole[: whole.index(whole[3])]

    def test_a_prompt_beyond_the_context_loses_its_beginning(self, model: LanguageModel) -> None:
        long = [number % 200 + 5 for number in range(400)]
        whole, cut = (greedy(model, prompt, stop_ids=(), max_tokens=10) for prompt in (long, long[-(256 - 10) :]))
        assert whole == cut


def as_block(tokens: Sequence[int]) -> Batch:
    return Batch(inputs=torch.tensor([tokens[:-1]]), targets=torch.tensor([tokens[1:]]))


class TestCompare:
    def test_what_rose_and_what_is_said_now(self, model: LanguageModel) -> None:
        found = chosen(notes(length=64), notes(length=64))
        observed = []
        for theta in (None, some_adapter(model, size=1.0)):
            model.set_parameters(theta)
            observed.append(observe(model, found, 4))
        model.set_parameters(None)
        insight = compare(found, *observed)
        base, personal = (one.probabilities for one in observed)
        assert base is not None and personal is not None
        assert insight.shifts and all(now > before > 0 for _, before, now in insight.shifts)
        first = int((personal * (personal / base).log()).argmax())
        assert insight.shifts[0] == (first, float(base[first]), float(personal[first]))
        assert [prompt for prompt, *_ in insight.continuations] == found.prompts
        assert any(before != now for _, before, now in insight.continuations)
        before, now = (one.recalled / found.places for one in observed)
        assert insight.verbatim_recall == {"places": found.places, "base": before, "personal": now}

    def test_nothing_to_tell(self, model: LanguageModel) -> None:
        found = chosen()
        observed = observe(model, found, 4)
        insight = compare(found, observed, observed)
        assert (insight.shifts, insight.continuations, insight.verbatim_recall) == ([], [], None)

    def test_a_masked_model_goes_on_with_nothing_but_its_words_can_be_told(self, root: Path) -> None:
        model_folder = imported(root, "roberta", "float32")
        texts = [Example(text) for text in NOTES]
        buckets = encode(texts, model_folder.tokenizer(), length=32, eos=EOS, is_mlm=True)
        found = chosen(buckets, buckets, is_mlm=True)
        observed = observe(LanguageModel(model_folder), found, 4)
        assert (found.learned, found.prompts, observed.recalled, observed.answers) == ((), [], 0, [])
        assert observed.probabilities is not None and float(observed.probabilities.sum()) == pytest.approx(1, abs=1e-4)
