import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from bench.tasks.labelled import Labelled, Template, encode_labelled, fit
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.streamed.loss import IGNORE_INDEX
from tests.support.tiny_models import byte_tokenizer

MOOD = Template(pattern="{text} It was {label}.", words={"good": "great", "bad": "terrible"})


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs merged to words with the space before them, and a mask that swallows that space: as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["A film. It was great. It was terrible.", " good bad won der ful"] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


WORDS = word_tokenizer()


def token(text: str) -> int:
    (number,) = WORDS(text, add_special_tokens=False)["input_ids"]
    return int(number)


@pytest.mark.parametrize("mask", [None, "<mask>"])
@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{text} It was {label}.", {"good": "great", "bad": "terrible"}),
        ("{text} It was{label}.", {"good": " great", "bad": " terrible"}),
    ],
)
def test_a_word_is_the_token_that_it_is_in_the_sentence(pattern: str, words: dict[str, str], mask: str | None) -> None:
    form = fit(Template(pattern=pattern, words=words), WORDS, mask)
    assert form.words == {"good": token(" great"), "bad": token(" terrible")}


def test_what_the_model_reads_with_the_word_in_place_is_the_sentence() -> None:
    text = "A film."
    for is_mlm in (False, True):
        (blocks,) = encode_labelled([Labelled(text=text, label="good")], WORDS, MOOD, length=16, eos=2, is_mlm=is_mlm)
        position = int((blocks.targets[0] != IGNORE_INDEX).nonzero())
        row = blocks.inputs[0].tolist()
        if is_mlm:
            row[position] = int(blocks.targets[0, position])
            assert blocks.lengths is not None
            tokens = row[1 : int(blocks.lengths[0]) - 1]
            assert tokens == WORDS("A film. It was great.", add_special_tokens=False)["input_ids"]
        else:
            assert row[0] == 2  # the separator, before the first word
            tokens = [*row[1 : position + 1], int(blocks.targets[0, position])]
            assert tokens == WORDS("A film. It was great", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("mask", [None, "<mask>"])
def test_a_word_of_several_tokens_is_told_by_its_place_alone(mask: str | None) -> None:
    template = Template(pattern=MOOD.pattern, words={"good": "great", "bad": "zzz"})
    with pytest.raises(BadRequest, match=r"word of label 2 is not one token .* reads it as 4 tokens"):
        fit(template, WORDS, mask)


def test_a_word_that_melts_into_its_neighbour_is_refused() -> None:
    # "It was" and "It wa" + "s" are the same to the model.
    template = Template(pattern="{text} It wa{label}", words={"a": "s", "b": "z"})
    with pytest.raises(BadRequest, match="word of label 1 is not one token where the template puts it"):
        fit(template, WORDS, None)


def test_bytes_are_words_too_and_keep_their_space_in_the_pattern() -> None:
    form = fit(Template(pattern="{text} It was {label}", words={"good": "+", "bad": "-"}), byte_tokenizer(), None)
    assert form.pattern == "{text} It was {label}"
    with pytest.raises(BadRequest, match=r"word of label 1 .* reads it as 6 tokens"):
        fit(MOOD, byte_tokenizer(), None)


def test_a_tokenizer_without_places_is_refused() -> None:
    with pytest.raises(BadRequest, match="does not give the offsets of tokens"):
        fit(MOOD, ByT5Tokenizer(), None)


@pytest.mark.parametrize(
    ("pattern", "words", "message"),
    [
        ("{text} It was", {"a": "x", "b": "y"}, "has {label} 0 times"),
        ("{label}", {"a": "x", "b": "y"}, "has {text} 0 times"),
        ("{text} {label} {label}", {"a": "x", "b": "y"}, "has {label} 2 times"),
        ("{text} {label}", {}, "two labels or more"),
        ("{text} {label}", {"a": "x"}, "two labels or more"),
        ("{text} {label}", {"a": "x", "b": " "}, "The label 'b' has no word"),
        ("{text} {label}", {"a": "x", "b": "x"}, "Two labels have the same word"),
    ],
)
def test_a_wrong_template_is_refused(pattern: str, words: dict[str, str], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Template(pattern=pattern, words=words)


def test_two_words_of_one_token_are_refused() -> None:
    lower = Tokenizer(models.WordLevel({"it": 0, "was": 1, "great": 2, "?": 3}, unk_token="?"))
    lower.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lower, unk_token="?")
    template = Template(pattern="{text} it was {label}", words={"a": "great", "b": " great"})
    with pytest.raises(BadRequest, match="the same token for this model"):
        fit(template, tokenizer, None)
