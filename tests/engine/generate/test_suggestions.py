"""Next words: what is typed, the tokens that fit, and probabilities against plain forward passes."""

import math
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.generate.suggestions import Suggester, Suggestion, Typed, Vocabulary, cut
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.learning import imported
from tests.support.tiny_models import VOCABULARY, byte_tokenizer, tiny_model_folder

EOS = 0
CONTEXT = [EOS, *byte_tokenizer()("The boat was")["input_ids"]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_tokenizer(), VOCABULARY, stop_ids={EOS})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel(open_model_folder(tiny_model_folder(tmp_path_factory.mktemp("models"), dtype="float32")))


@pytest.mark.parametrize(
    ("context", "prefix", "before", "beginning"),
    [
        ("We met at the ", None, "We met at the", " "),
        ("We met at the sta", None, "We met at the", " sta"),
        ("We met at the", "", "We met at the", " "),
        ("We met at the", "sta", "We met at the", " sta"),
        ("We met at the ", "sta", "We met at the", " sta"),
        ("", None, "", ""),
        ("", "We", "", "We"),
        ("  ", None, "", ""),
        ("We", None, "", "We"),
        ("Dear Anna,\n", None, "Dear Anna,\n", ""),
        ("Dear Anna,\n  w", None, "Dear Anna,\n", "w"),
        ("She said “", None, "She said “", ""),
        ("She said “", "G", "She said “", "G"),
        ("It is. ", None, "It is.", " "),
        ("I don't", None, "I", " don't"),
        ("Смотри на не", None, "Смотри на", " не"),
    ],
)
def test_what_is_typed_is_divided_before_its_last_word(
    context: str, prefix: str | None, before: str, beginning: str
) -> None:
    assert Typed.of(context, prefix) == Typed(before, beginning)


def test_the_tokens_that_a_word_may_begin_with(vocabulary: Vocabulary) -> None:
    found = {vocabulary.texts[token] for token in vocabulary.beginning("")}
    assert {"a", "Z", "7", "'"} <= found and not {" ", ".", "\n", ""} & found
    assert {vocabulary.texts[token] for token in vocabulary.beginning(" sta")} == {" "}
    assert [vocabulary.texts[token] for token in vocabulary.beginning("s")] == ["s"]


def by_plain_passes(model: LanguageModel, vocabulary: Vocabulary, text: str, context: list[int] = CONTEXT) -> float:
    """The probability that the context goes on with this text, and a word ends there."""
    tokens = [*context, *byte_tokenizer()(text)["input_ids"]]
    with torch.inference_mode():
        logits = model.all_logits(torch.tensor([tokens]), DynamicCache())
    logprobs = logits.log_softmax(-1)
    places = range(len(context) - 1, len(tokens) - 1)
    total = sum(float(logprobs[place, tokens[place + 1]]) for place in places)
    return math.exp(total) * float(logprobs[-1].exp() @ vocabulary.ending)


@pytest.mark.parametrize("beginning", [" ", " st", ""])
def test_probabilities_are_those_of_plain_passes(model: LanguageModel, vocabulary: Vocabulary, beginning: str) -> None:
    found = Suggester(model, vocabulary).suggest(CONTEXT, beginning, n=3)
    assert len({one.text for one in found}) == 3
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    space = " " if beginning.startswith(" ") else ""
    for one in found:
        assert f"{space}{one.text}".startswith(beginning) and len(one.text) > len(beginning.strip())
        assert one.probability == pytest.approx(by_plain_passes(model, vocabulary, space + one.text), rel=1e-3)


def test_no_single_letter_is_likelier_than_the_best_word(model: LanguageModel, vocabulary: Vocabulary) -> None:
    (best,) = Suggester(model, vocabulary).suggest(CONTEXT, "", n=1)
    letters = (vocabulary.texts[token] for token in vocabulary.beginning(""))
    likeliest = max(by_plain_passes(model, vocabulary, letter) for letter in letters if letter.isascii())
    assert best.probability >= likeliest * (1 - 1e-3)


def test_what_is_remembered_changes_nothing(model: LanguageModel, vocabulary: Vocabulary) -> None:
    typing = Suggester(model, vocabulary)
    text = "The boat was old. She said that"
    for size in range(1, len(text) + 1):
        typed = Typed.of(text[:size], None)
        tokens = [EOS, *byte_tokenizer()(typed.context)["input_ids"]]
        found = typing.suggest(tokens, typed.beginning, n=2)
        assert_equal(found, Suggester(model, vocabulary).suggest(tokens, typed.beginning, n=2))
    shorter = [EOS, *byte_tokenizer()("The boat")["input_ids"]]  # the cursor goes back
    assert_equal(typing.suggest(shorter, " ", n=2), Suggester(model, vocabulary).suggest(shorter, " ", n=2))


def test_what_is_known_of_endings_needs_no_pass_and_no_other_words(model: LanguageModel) -> None:
    every_token_ends_a_word = Vocabulary(byte_tokenizer(), VOCABULARY, stop_ids=range(VOCABULARY))
    typing = Suggester(model, every_token_ends_a_word)
    typing.suggest(CONTEXT, "", n=3)
    longer = [*CONTEXT, *byte_tokenizer()(" old")["input_ids"]]
    found = typing.suggest(longer, "", n=3)
    assert_equal(found, Suggester(model, every_token_ends_a_word).suggest(longer, "", n=3))
    for one in found:
        assert one.probability == pytest.approx(
            by_plain_passes(model, every_token_ends_a_word, one.text, longer), rel=1e-3
        )


def assert_equal(found: list[Suggestion], wanted: list[Suggestion]) -> None:
    assert [one.text for one in found] == [one.text for one in wanted]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in wanted], rel=1e-3)


def test_phrases_begin_with_the_words_and_are_as_likely_as_plain_passes_say(
    model: LanguageModel, vocabulary: Vocabulary
) -> None:
    suggester = Suggester(model, vocabulary)
    words = suggester.suggest(CONTEXT, "", n=3)
    phrases = suggester.suggest(CONTEXT, "", n=3, words=3)
    for word, phrase in zip(words, phrases, strict=True):
        assert phrase.text.startswith(word.text) and len(phrase.text.split()) <= 3
        assert phrase.probability == pytest.approx(by_plain_passes(model, vocabulary, phrase.text), rel=1e-3)


def test_too_late_it_suggests_what_it_has(model: LanguageModel, vocabulary: Vocabulary) -> None:
    found = Suggester(model, vocabulary).suggest(CONTEXT, "", n=3, words=4, late=lambda: True)
    assert len(found) == 3 and all(len(one.text) == 1 for one in found)


@pytest.mark.parametrize("architecture", ["gemma3_text", "opt", "mistral"])
def test_of_other_families(architecture: str, tmp_path: Path) -> None:
    model = LanguageModel(imported(tmp_path, architecture, "float32"))
    words = Vocabulary(byte_tokenizer(), model.head.at(None).vocabulary, stop_ids={EOS})
    short = [EOS, 70]  # within the window of the layers that have one
    for one in Suggester(model, words).suggest(short, "", n=3):
        assert one.probability == pytest.approx(by_plain_passes(model, words, one.text, short), rel=1e-2)


def test_a_long_context_is_cut_in_steps() -> None:
    assert [cut(size, 512) for size in (0, 512, 513, 768, 769)] == [0, 0, 256, 256, 512]
