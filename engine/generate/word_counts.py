"""The owner's words, and the words behind each, counted: what a keyboard learns at once.

Of a word that begins as typed, behind a word before it, the probability among all such words is that of the pair,
smoothed by that of the single word (Dirichlet smoothing; Zhai and Lafferty 2004). How much it counts beside the
model's grows with how often the owner has written such words.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

#: Letters and digits, with apostrophes in them.
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # noqa: RUF001
#: As many occurrences of a word stand for one occurrence of the pair; and of all words that begin so for the model.
#: Fitted, as is the next, on words that two of the writers of bench.keys type; it has a third.
_SINGLE, _MODEL = 0.5, 5.0
#: The most that the counts weigh.
_MOST = 0.2


class WordCounts:
    """Counts of words and of pairs of words."""

    def __init__(self) -> None:
        self._words = Counter[str]()
        self._after: dict[str, Counter[str]] = {}
        self._sorted: list[str] | None = None
        self.state = object()  #: another one after each change

    def __contains__(self, word: str) -> bool:
        """Whether it was written."""
        return word in self._words

    def begins(self, letters: str) -> bool:
        """Whether a word begins so that was written."""
        return letters in self or bool(self._all(letters))

    def add(self, texts: Iterable[str]) -> None:
        """Count the words of these texts."""
        for text in texts:
            words = WORD.findall(text)
            self._words.update(words)
            for before, word in pairwise(words):
                self._after.setdefault(before, Counter())[word] += 1
            self._sorted, self.state = None, object()

    def beginning(self, before: str, letters: str, *, whole: bool = False) -> tuple[Mapping[str, float], float]:
        """The probability of each word that begins with these letters and has more, behind the word `before`, among
        all of these; and how much that counts beside the model's, from 0 on. whole: also of the word of these letters.
        """
        after: Mapping[str, int] = self._after.get(before, {})
        behind = {word: count for word, count in after.items() if self._fits(word, letters, whole)}
        single = {word: self._words[word] for word in (self._all(letters, whole) if letters else behind)}
        of_words, of_pairs = sum(single.values()), sum(behind.values())
        if not of_words:
            return {}, 0.0
        found = {
            word: (behind.get(word, 0) + _SINGLE * count / of_words) / (of_pairs + _SINGLE)
            for word, count in single.items()
        }
        evidence = of_pairs + (of_words if letters else 0)
        return found, _MOST * evidence / (evidence + _MODEL)

    @staticmethod
    def _fits(word: str, letters: str, whole: bool) -> bool:
        return word.startswith(letters) and (whole or len(word) > len(letters))

    def _all(self, letters: str, whole: bool = False) -> list[str]:
        if self._sorted is None:
            self._sorted = sorted(self._words)
        first = bisect_left(self._sorted, letters)
        last = bisect_left(self._sorted, letters + "\U0010ffff")
        return [word for word in self._sorted[first:last] if self._fits(word, letters, whole)]
