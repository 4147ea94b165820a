"""The words that a model can say, and those that there are."""

import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Collection
from functools import lru_cache
from itertools import accumulate

import torch
from spellchecker import SpellChecker

from pocketllm.engine.formats.tokenizer import Tokenizer
from pocketllm.engine.generate.word_counts import WORD

#: Beginnings of words whose tokens are remembered.
_BEGINNINGS = 256
#: The dictionary applies if it has this share of the last words; and the characters in which those lie.
_KNOWN, _LAST_CHARACTERS = 2 / 3, 400


def is_word_character(character: str) -> bool:
    """Whether it is a letter, a digit, a mark on one, or an apostrophe."""
    return character in "'’" or unicodedata.category(character)[0] in "LNM"  # noqa: RUF001


class Dictionary:
    """English words. Of the words that a model says, it lacks nearly all that are none."""

    def __init__(self) -> None:
        # One string and places in it: a list of strings would take 10 MB, six times as much.
        words = sorted(SpellChecker(language="en").word_frequency.keys())
        self._words = "\n".join(words) + "\n"
        self._places = array("I", accumulate((len(word) + 1 for word in words[:-1]), initial=0))

    def __contains__(self, word: str) -> bool:
        """Whether it has a word, whatever its case, or the word whose genitive this is; or it is a number."""
        plain = _plain(word)
        return plain.isdecimal() or any(self._at(one) == one for one in (plain, plain.removesuffix("'s")))

    def begins(self, letters: str) -> bool:
        """Whether a word in it begins so, or is contained in it."""
        return self._at(plain := _plain(letters)).startswith(plain) or letters in self

    @lru_cache(maxsize=1)  # noqa: B019 -- there is one dictionary, which is asked about a text with each key
    def is_of(self, text: str) -> bool:
        """Whether it is a dictionary of this text's language, by the last words; of a text without words, it is.

        What begins with a digit, as "2nd", is of every language.
        """
        words: list[str] = WORD.findall(text[-_LAST_CHARACTERS:])
        return sum(word in self or word[0].isdecimal() for word in words) >= _KNOWN * len(words)

    def _at(self, word: str) -> str:
        """The first word that is not before this one."""
        place = bisect_left(self._places, word, key=self._word)
        return self._word(self._places[place]) if place < len(self._places) else ""

    def _word(self, place: int) -> str:
        return self._words[place : self._words.index("\n", place)]


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")  # noqa: RUF001


class Vocabulary:
    """The text of each token."""

    def __init__(self, tokenizer: Tokenizer, size: int, stop_ids: Collection[int]) -> None:
        """size: of the model's output."""
        count = min(size, len(tokenizer.get_vocab()))
        self.texts = [*_texts(tokenizer, count), *[""] * (size - count)]
        self._order = sorted(range(count), key=self.texts.__getitem__)
        self._sorted = [self.texts[token] for token in self._order]
        self._words = [_is_word(text.removeprefix(" ")) for text in self.texts]
        ending = [
            token in stop_ids or not text or not is_word_character(text[0]) for token, text in enumerate(self.texts)
        ]
        #: (vocabulary,): 1 for the tokens that end the word before them.
        self.ending = torch.tensor(ending, dtype=torch.float32)
        #: (vocabulary,): whether a token goes on with the word before it.
        self.continues = torch.tensor([_is_word(text) for text in self.texts]) & (self.ending == 0)

    @lru_cache(maxsize=_BEGINNINGS)  # noqa: B019 -- there is one vocabulary
    def beginning(self, text: str) -> torch.Tensor:
        """The tokens that a word may begin with which begins like this: parts of it, and what goes on with letters."""
        parts = (text[:size] for size in range(1, len(text) + 1))
        found = [token for part in parts for token in self._between(part, part + "\0")]
        longer = self._between(text + "\0", text + "\U0010ffff")
        found += [token for token in longer if self._words[token] and (text or self.texts[token][0] != " ")]
        return torch.tensor(found, dtype=torch.long)

    def _between(self, first: str, last: str) -> list[int]:
        return self._order[bisect_left(self._sorted, first) : bisect_left(self._sorted, last)]


def _texts(tokenizer: Tokenizer, count: int) -> list[str]:
    """The text of each token behind another one: alone, some tokenizers drop its space."""
    anchor = tokenizer.get_vocab().get("a", 0)
    size = len(tokenizer.decode([anchor]))
    return [str(tokenizer.decode([anchor, token], skip_special_tokens=True))[size:] for token in range(count)]


def _is_word(text: str) -> bool:
    return bool(text) and all(map(is_word_character, text))
