"""Labelled text as MeZO's paper learns it: sentences with a slot for the label's word, for a given tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketllm.engine.data.batches import Batches
from pocketllm.engine.data.examples import Row, SpecialTokens, bucketed, parts
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.streamed.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT, _LABEL = "{text}", "{label}"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A text and its label, which is the target."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Template:
    """A sentence for labelled text, e.g. "{text} It was {label}" with the words great and terrible.

    Raises BadRequest unless the pattern has {text} and {label} once each and there are two different words or more.
    """

    pattern: str
    words: Mapping[str, str]  #: label -> its word in the pattern

    def __post_init__(self) -> None:
        for field in (_TEXT, _LABEL):
            if (count := self.pattern.count(field)) != 1:
                raise BadRequest(f"The pattern {self.pattern!r} has {field} {count} times; write it once.")
        if len(self.words) < 2:
            raise BadRequest("A template needs two labels or more, each with its word; one alone teaches nothing.")
        for label, word in self.words.items():
            if not word.strip():
                raise BadRequest(f"The label {label!r} has no word. Give it one that fits into the pattern.")
        if len(set(self.words.values())) < len(self.words):
            raise BadRequest("Two labels have the same word, so they cannot be told apart. Give each its own.")


@dataclass(frozen=True)
class Filled:
    """A pattern filled with a text, as token ids."""

    ids: NDArray[np.int64]
    slot: int  #: index of the label's token; one past the last token where there is no mask
    text: list[int]  #: indices of the tokens that belong to the text only, in order

    def cut(self, limit: int) -> tuple[NDArray[np.int64], int]:
        """The ids and slot, cut to `limit` tokens by dropping the text's last ones.

        Raises BadRequest when the pattern does not fit without the text.
        """
        excess = len(self.ids) - limit
        if excess <= 0:
            return self.ids, self.slot
        if excess > len(self.text):
            raise BadRequest(
                f"The pattern alone is {len(self.ids) - len(self.text)} tokens, and a block has room for {limit}. "
                "Shorten the pattern, or use longer blocks."
            )
        dropped = self.text[-excess:]
        return np.delete(self.ids, dropped), self.slot - sum(place < self.slot for place in dropped)


@dataclass(frozen=True, kw_only=True)
class Form:
    """A template for one tokenizer."""

    pattern: str  #: in which each label's word is one token
    slot: str  #: replaces {label}: the mask token's text, or ""
    words: Mapping[str, int]  #: label -> its word's token id

    def fill(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[Filled]:
        """Yield the pattern filled with each text."""
        return _fill(tokenizer, self.pattern, self.slot, texts)


def fit(template: Template, tokenizer: PreTrainedTokenizerBase, mask: str | None) -> Form:
    """The template for this tokenizer. mask: the mask token's text; None for a causal model.

    Raises BadRequest when a label's word is not one token in the pattern, when two words are the same token, or when
    the text follows the label, where a causal model does not see it.
    """
    if not tokenizer.is_fast:
        raise BadRequest(
            "This model's tokenizer does not give the offsets of tokens. Use a model with a fast tokenizer."
        )
    pattern, slot = template.pattern, mask or ""
    if mask is None:
        pattern = pattern[: pattern.index(_LABEL) + len(_LABEL)]
    if _TEXT not in pattern:
        raise BadRequest(
            f"The template has {_TEXT} behind {_LABEL}, where a causal model does not see it. Write it in front."
        )
    # Most tokenizers treat the space before a word as part of its token, a few as a token of its own.
    patterns = (re.sub(r"\s+{label}", _LABEL, pattern), pattern)
    sentences = _sentences(template, tokenizer, pattern)
    tries = [(choice, *_words(tokenizer, choice, slot, sentences)) for choice in patterns]
    pattern, words, misfits = min(tries, key=lambda one: len(one[2]))
    for label, pieces in misfits.items():
        # An error is kept with its job, and the labels are the owner's words.
        number = list(template.words).index(label) + 1
        raise BadRequest(
            f"The word of label {number} is not one token where the template puts it: this model reads it as "
            f"{len(pieces)} tokens. Choose another word."
        )
    if len(set(words.values())) < len(words):
        raise BadRequest("Two labels' words are the same token for this model. Choose words that it can tell apart.")
    return Form(pattern=pattern, slot=slot, words=words)


def _sentences(template: Template, tokenizer: PreTrainedTokenizerBase, pattern: str) -> dict[str, list[int]]:
    """For each label, the pattern's tokens with its word in place and no text."""
    texts = [pattern.replace(_TEXT, "").replace(_LABEL, word) for word in template.words.values()]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return dict(zip(template.words, ids, strict=True))


def _words(
    tokenizer: PreTrainedTokenizerBase, pattern: str, slot: str, sentences: Mapping[str, list[int]]
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Label -> token id of each word that is one token in the pattern; label -> token ids of each other word."""
    (empty,) = _fill(tokenizer, pattern, slot, [""])
    before, after = empty.ids[: empty.slot].tolist(), empty.ids[empty.slot + 1 :].tolist()
    words: dict[str, int] = {}
    misfits: dict[str, list[int]] = {}
    for label, sentence in sentences.items():
        here = slice(len(before), len(sentence) - len(after))
        if sentence[: len(before)] != before or sentence[here.stop :] != after:
            misfits[label] = sentence
        elif len(sentence[here]) != 1:
            misfits[label] = sentence[here] or sentence
        else:
            words[label] = sentence[here][0]
    return words, misfits


def _fill(tokenizer: PreTrainedTokenizerBase, pattern: str, slot: str, texts: Sequence[str]) -> Iterator[Filled]:
    text_at, slot_at = pattern.index(_TEXT), pattern.index(_LABEL)
    text_first = text_at < slot_at
    if text_first:
        slot_at -= len(_TEXT)  # the text's own length is added below
    else:
        text_at += len(slot) - len(_LABEL)
    pattern = pattern.replace(_LABEL, slot)
    encoded = tokenizer(
        [pattern.replace(_TEXT, text) for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,  # transformers warns of texts longer than the model's context, which are cut later
    )
    for text, ids, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        place = slot_at + len(text) * text_first
        yield Filled(
            ids=np.array(ids, dtype=np.int64),
            slot=next((i for i, (_, stop) in enumerate(spans) if stop > place), len(ids)),
            text=[i for i, (start, stop) in enumerate(spans) if start >= text_at and stop <= text_at + len(text)],
        )


def encode_labelled(
    examples: Sequence[Labelled],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    length: int,
    eos: int,
    is_mlm: bool = False,
) -> Batches:
    """The examples as blocks, as engine/data/examples.py makes those of other text.

    The loss is a softmax over the label words only (`label_ids`, in the labels' sorted order), as in MeZO (arXiv
    2305.17333, the appendix on prompts; `model_for_prompting_forward` in its medium_models/src/models.py). Raises
    BadRequest when the model or the template does not fit the examples.
    """
    special = SpecialTokens.of(tokenizer, length) if is_mlm else None
    if count := sum(example.label not in template.words for example in examples):
        raise BadRequest(
            f"{count} of the texts have a label that the template has no word for. Give it one, or correct the texts."
        )
    form = fit(template, tokenizer, special.mask_text if special else None)
    rows = _labelled_rows(examples, tokenizer, form, special, length=length, eos=eos)
    label_ids = tuple(form.words[label] for label in sorted(form.words))
    return tuple(bucketed(rows, length=length, pad=special.pad if special else eos, label_ids=label_ids))


def _labelled_rows(
    examples: Sequence[Labelled],
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    special: SpecialTokens | None,
    *,
    length: int,
    eos: int,
) -> Iterator[Row]:
    for part in parts(examples, lambda example: len(example.text)):
        filled = form.fill(tokenizer, [example.text for example in part])
        for example, one in zip(part, filled, strict=True):
            ids, slot = one.cut(length - 2 if special else length - 1)
            first, last = ([special.start], [special.end]) if special else ([eos], [])
            ids, slot = np.concatenate([first, ids, last]).astype(np.int64), slot + 1
            targets = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
            # A masked language model predicts a token at its own position, a causal model one position earlier.
            targets[slot if special else slot - 1] = form.words[example.label]
            yield Row(ids, targets)
