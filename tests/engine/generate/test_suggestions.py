"""Next words: what is typed, the tokens that fit, and probabilities against plain forward passes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.generate.suggestions import FLOOR, Suggester, Suggestion, Typed, cut
from pocketllm.engine.generate.vocabulary import Dictionary, Vocabulary
from pocketllm.engine.generate.word_counts import WordCounts
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import imported
from tests.support.models.tiny_models import VOCABULARY, byte_tokenizer

EOS = 0
CONTEXT = [EOS, *byte_tokenizer()("The boat was")["input_ids"]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_tokenizer(), VOCABULARY, stop_ids={EOS})


@pytest.fixture(scope="module")
def model(tiny: ModelFolder) -> LanguageModel:
    return LanguageModel(tiny)


def test_what_is_typed_is_divided_before_its_last_word() -> None:
    divided: dict[tuple[str, str | None], tuple[str, str]] = {
        ("We met at the ", None): ("We met at the", " "),
        ("We met at the sta", None): ("We met at the", " sta"),
        ("We met at the", ""): ("We met at the", " "),
        ("We met at the", "sta"): ("We met at the", " sta"),
        ("We met at the ", "sta"): ("We met at the", " sta"),
        ("", None): ("", ""),
        ("", "We"): ("", "We"),
        ("  ", None): ("", ""),
        ("We", None): ("", "We"),
        ("Dear Anna,\n", None): ("Dear Anna,\n", ""),
        ("Dear Anna,\n  w", None): ("Dear Anna,\n", "w"),
        ("She said “", None): ("She said “", ""),
        ("She said “", "G"): ("She said “", "G"),
        ("It is. ", None): ("It is.", " "),
        ("I don't", None): ("I", " don't"),
        ("Смотри на не", None): ("Смотри на", " не"),
    }
    for (context, prefix), (before, beginning) in divided.items():
        may_be_whole = prefix is None and bool(beginning.strip())
        assert Typed.of(context, prefix) == Typed(before, beginning, may_be_whole), (context, prefix)


def suggested(
    suggester: Suggester, context: list[int], beginning: str, *, may_be_whole: bool = False, **more: Any
) -> list[Suggestion]:
    """The suggestions of a search that was over."""
    found, complete = suggester.suggest(context, Typed("", beginning, may_be_whole), **more)
    assert complete
    return found


def test_the_tokens_that_a_word_may_begin_with(vocabulary: Vocabulary) -> None:
    found = {vocabulary.texts[token] for token in vocabulary.beginning("")}
    assert {"a", "Z", "7", "'"} <= found and not {" ", ".", "\n", ""} & found
    assert {vocabulary.texts[token] for token in vocabulary.beginning(" sta")} == {" "}
    assert [vocabulary.texts[token] for token in vocabulary.beginning("s")] == ["s"]


def ids(text: str) -> list[int]:
    found: list[int] = byte_tokenizer()(text)["input_ids"]
    return found


def continuation(model: LanguageModel, text: str, context: list[int]) -> tuple[float, torch.Tensor]:
    """The probability that the context goes on with this text, and those of the token behind it, by a plain pass."""
    tokens = [*context, *ids(text)]
    with torch.inference_mode():
        logprobs = model.all_logits(torch.tensor([tokens]), DynamicCache()).log_softmax(-1)
    places = range(len(context) - 1, len(tokens) - 1)
    return math.exp(sum(float(logprobs[place, tokens[place + 1]]) for place in places)), logprobs[-1].exp()


def by_plain_passes(model: LanguageModel, vocabulary: Vocabulary, text: str, context: list[int] = CONTEXT) -> float:
    """The probability that the context goes on with this text, and a word ends there."""
    probability, behind = continuation(model, text, context)
    return probability * float(behind @ vocabulary.ending)


def test_probabilities_are_those_of_plain_passes(model: LanguageModel, vocabulary: Vocabulary) -> None:
    for beginning in (" ", " st", ""):
        found = suggested(Suggester(model, vocabulary), CONTEXT, beginning, n=3)
        assert len({one.text for one in found}) == 3
        assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
        space = " " if beginning.startswith(" ") else ""
        for one in found:
            assert f"{space}{one.text}".startswith(beginning) and len(one.text) > len(beginning.strip())
            assert one.probability == pytest.approx(by_plain_passes(model, vocabulary, space + one.text), rel=1e-3)


def test_no_single_letter_is_likelier_than_the_best_word(model: LanguageModel, vocabulary: Vocabulary) -> None:
    (best,) = suggested(Suggester(model, vocabulary), CONTEXT, "", n=1)
    letters = (vocabulary.texts[token] for token in vocabulary.beginning(""))
    likeliest = max(by_plain_passes(model, vocabulary, letter) for letter in letters if letter.isascii())
    assert best.probability >= likeliest * (1 - 1e-3)


def test_what_is_remembered_changes_nothing(model: LanguageModel, vocabulary: Vocabulary) -> None:
    typing = Suggester(model, vocabulary)
    text = "The boat was old. She said that"
    for size in range(1, len(text) + 1):
        typed = Typed.of(text[:size], None)
        tokens = [EOS, *ids(typed.context)]
        found = suggested(typing, tokens, typed.beginning, n=2)
        assert_equal(found, suggested(Suggester(model, vocabulary), tokens, typed.beginning, n=2))
    shorter = [EOS, *ids("The boat")]  # the cursor goes back
    assert_equal(suggested(typing, shorter, " ", n=2), suggested(Suggester(model, vocabulary), shorter, " ", n=2))


def test_what_is_known_of_endings_needs_no_pass_and_no_other_words(model: LanguageModel) -> None:
    every_token_ends_a_word = Vocabulary(byte_tokenizer(), VOCABULARY, stop_ids=range(VOCABULARY))
    typing = Suggester(model, every_token_ends_a_word)
    suggested(typing, CONTEXT, "", n=3)
    longer = [*CONTEXT, *ids(" old")]
    found = suggested(typing, longer, "", n=3)
    assert_equal(found, suggested(Suggester(model, every_token_ends_a_word), longer, "", n=3))
    for one in found:
        expected = by_plain_passes(model, every_token_ends_a_word, one.text, longer)
        assert one.probability == pytest.approx(expected, rel=1e-3)


def assert_equal(found: list[Suggestion], wanted: list[Suggestion]) -> None:
    assert [one.text for one in found] == [one.text for one in wanted]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in wanted], rel=1e-3)


def test_too_late_it_suggests_what_it_has(model: LanguageModel, vocabulary: Vocabulary) -> None:
    late = Suggester(model, vocabulary)
    found, complete = late.suggest(CONTEXT, Typed("", ""), n=3, late=lambda: True)
    assert not complete and len(found) == 3 and all(len(one.text) == 1 for one in found)
    assert len(suggested(late, CONTEXT, "", n=3)) == 3, "it is not remembered"


def test_behind_a_finished_word_the_next_words_are_suggested(model: LanguageModel, vocabulary: Vocabulary) -> None:
    for beginning in (" wa", " w"):
        found = suggested(Suggester(model, vocabulary), CONTEXT, beginning, n=3, may_be_whole=True)
        assert len(found) == 3
        assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
        whole = [*CONTEXT, *ids(beginning)]
        for one in found:
            assert one.text.startswith(" ") and len(one.text.split()) == 1
            assert one.probability == pytest.approx(by_plain_passes(model, vocabulary, one.text, whole), rel=1e-3)


def test_a_word_that_the_owner_often_goes_on_with_is_not_finished(model: LanguageModel, vocabulary: Vocabulary) -> None:
    counts = WordCounts()
    counts.add(["The boat was waxed."] * 1000)
    typed = Typed("The boat was", " wa", may_be_whole=True)
    found, _ = Suggester(model, vocabulary).suggest(CONTEXT, typed, n=3, counts=counts)
    assert found[0].text == "waxed" and "wa" not in [one.text for one in found]


def test_shares_are_of_what_begins_as_typed(model: LanguageModel, vocabulary: Vocabulary) -> None:
    found = suggested(Suggester(model, vocabulary), CONTEXT, " sta", n=3)
    begins, _ = continuation(model, " sta", CONTEXT)
    for one in found:
        assert one.share == pytest.approx(by_plain_passes(model, vocabulary, f" {one.text}") / begins, rel=1e-2)


@pytest.mark.slow
def test_of_the_real_model_they_are_words(smollm2: ModelFolder) -> None:
    model, tokenizer = LanguageModel(smollm2), smollm2.tokenizer()
    words = Vocabulary(tokenizer, model.head.at(None).vocabulary, stop_ids={EOS})
    suggester = Suggester(model, words, Dictionary())

    def asked(text: str, prefix: str | None = None, **more: Any) -> list[str]:
        typed = Typed.of(text, prefix)
        context = [EOS, *tokenizer(typed.context, add_special_tokens=False)["input_ids"]]
        found, complete = suggester.suggest(context, typed, **more)
        assert complete
        return [one.text for one in found]

    assert " to" in asked("I am happy", n=3)
    assert " house" in asked("We stayed at Anna's", n=3)
    assert all(one.startswith(" ") for one in asked("We met at the station", n=3)), "no endings of a finished word"
    assert "station" in asked("We met at the railway sta", n=3)
    assert asked("Happy birth", n=3)[0] == "birthday" and asked("I will send you the invo", n=3)[0] == "invoice"
    assert "station" in asked("We met at the railway", "sta", n=3)
    assert not any(" " in one for one in asked("I am", "looking", n=5)), "the prefix is said to be unfinished"
    assert asked("I am", "qxzvw", n=3) == []
    assert "Fitzgerald" in (names := asked("F. Scott", "Fitz", n=5)) and "Fitz" not in names
    assert "TV" in asked("We sat down and watched", "T", n=5), "an abbreviation, which is in no dictionary"


def test_nothing_below_the_floor_is_offered(
    model: LanguageModel, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = suggested(Suggester(model, vocabulary), CONTEXT, "", n=10)
    assert all(one.share >= FLOOR for one in everything)
    monkeypatch.setattr("pocketllm.engine.generate.suggestions.FLOOR", 0.99 * everything[4].share)
    found = suggested(Suggester(model, vocabulary), CONTEXT, "", n=10)
    assert [one.text for one in found] == [one.text for one in everything[:5]]


def test_the_owners_words_are_weighed_with_the_models(model: LanguageModel, vocabulary: Vocabulary) -> None:
    counts = WordCounts()
    counts.add(["The boat was quick."] * 50)
    alone = suggested(Suggester(model, vocabulary), CONTEXT, " q", n=3)
    typed = Typed("The boat was", " q")
    found, _ = Suggester(model, vocabulary).suggest(CONTEXT, typed, n=3, counts=counts)
    assert found[0].text == "quick" and "quick" not in [one.text for one in alone]
    assert {one.text for one in found[1:]} == {one.text for one in alone[:2]}
    late, complete = Suggester(model, vocabulary).suggest(CONTEXT, typed, n=3, counts=counts, late=lambda: True)
    assert late[0].text == "quick" and not complete
    nothing, _ = Suggester(model, vocabulary).suggest(CONTEXT, typed, n=3, counts=WordCounts())
    assert_equal(nothing, alone)


def test_of_a_model_whose_layers_have_a_window(root: Path) -> None:
    model = LanguageModel(imported(root, "gemma3_text", "float32"))
    words = Vocabulary(byte_tokenizer(), model.head.at(None).vocabulary, stop_ids={EOS})
    short = [EOS, 70]  # within the window
    for one in suggested(Suggester(model, words), short, "", n=3):
        assert one.probability == pytest.approx(by_plain_passes(model, words, one.text, short), rel=1e-2)


def test_a_long_context_is_cut_in_steps() -> None:
    assert [cut(size, 512) for size in (0, 512, 513, 768, 769)] == [0, 0, 256, 256, 512]


def test_only_words_are_suggested_that_there_are_or_that_the_owner_wrote(
    model: LanguageModel, vocabulary: Vocabulary
) -> None:
    dictionary, typed = Dictionary(), Typed("The boat was", " st")
    suggester = Suggester(model, vocabulary, dictionary)
    found, complete = suggester.suggest(CONTEXT, typed, n=5)
    assert complete and all(one.text in dictionary for one in found)
    assert suggester.suggest(CONTEXT, Typed("Båten låg där", " st"), n=5)[0][0].text not in dictionary
    (invented, *_) = suggested(Suggester(model, vocabulary), CONTEXT, " st", n=1)
    own = WordCounts()
    assert invented.text not in {one.text for one in suggester.suggest(CONTEXT, typed, n=5, counts=own)[0]}
    own.add([invented.text])
    assert suggester.suggest(CONTEXT, typed, n=5, counts=own)[0][0].text == invented.text
