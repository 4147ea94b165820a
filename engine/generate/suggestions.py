"""The likeliest next words: a search over tokens, on the cache of what was typed before.

The candidates of a search are a tree behind the context, in which a token sees the context and its own ancestors
(SpecInfer, arXiv 2305.09781, section 4). So a pass over all of them reads the weights once and copies no cache.
"""

import math
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from pocketllm.engine.generate.streaming_text import TextTokenizer
from pocketllm.engine.streamed.model import LanguageModel

#: The context that counts, in characters and in tokens. What is longer loses half of that at a time, so that the cache
#: of its beginning stays valid meanwhile.
MAX_CHARACTERS, MAX_TOKENS = 4000, 512
#: Candidates of a pass, for each suggestion; continuations of a candidate; tokens of a word.
_CANDIDATES, _BRANCHES, _WORD_TOKENS = 3, 3, 6
#: Candidates that are kept between two questions about the same context.
_MAX_NODES = 100
#: Probabilities that are remembered of each token.
_ENDINGS = 8
#: Tokens of a phrase, for each of its words but the first.
_TOKENS_PER_WORD = 3
#: No space is missing after these.
_OPENING = '([{<"“‘«-–—/\n'  # noqa: RUF001


@dataclass(frozen=True)
class Suggestion:
    """Words that may come next, the first with what is typed of it."""

    text: str
    probability: float  #: that the text goes on with exactly these words; of single words mostly an estimate


@dataclass(frozen=True)
class Typed:
    """A text that is being typed, divided before its last word."""

    context: str  #: without the space at its end
    beginning: str  #: of the word, after that space

    @classmethod
    def of(cls, context: str, prefix: str | None) -> "Typed":
        """prefix: what is typed of the word behind the context; None: the letters at the context's end."""
        if prefix is None:
            size = len(context)
            while size and is_word_character(context[size - 1]):
                size -= 1
            context, prefix = context[:size], context[size:]
            is_spaced = context.endswith((" ", "\t"))
        else:
            is_spaced = bool(context) and context[-1] not in _OPENING
        before = context.rstrip(" \t")
        return cls(before, f" {prefix}" if is_spaced and before and before[-1] != "\n" else prefix)


def is_word_character(character: str) -> bool:
    """Whether it is a letter, a digit, a mark on one, or an apostrophe."""
    return character in "'’" or unicodedata.category(character)[0] in "LNM"  # noqa: RUF001


class Vocabulary:
    """The text of each token."""

    def __init__(self, tokenizer: TextTokenizer, size: int, stop_ids: Collection[int]) -> None:
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

    def beginning(self, text: str) -> list[int]:
        """The tokens that a word may begin with which begins like this: parts of it, and what goes on with letters."""
        parts = (text[:size] for size in range(1, len(text) + 1))
        found = [token for part in parts for token in self._between(part, part + "\0")]
        longer = self._between(text + "\0", text + "\U0010ffff")
        return found + [token for token in longer if self._words[token] and (text or self.texts[token][0] != " ")]

    def is_spaced_word(self, token: int) -> bool:
        """Whether it begins a new word after a space."""
        return self._words[token] and self.texts[token][:1] == " "

    def _between(self, first: str, last: str) -> list[int]:
        return self._order[bisect_left(self._sorted, first) : bisect_left(self._sorted, last)]


def _texts(tokenizer: TextTokenizer, count: int) -> list[str]:
    """The text of each token behind another one: alone, some tokenizers drop its space."""
    anchor = tokenizer.get_vocab().get("a", 0)
    size = len(tokenizer.decode([anchor]))
    return [tokenizer.decode([anchor, token], skip_special_tokens=True)[size:] for token in range(count)]


def _is_word(text: str) -> bool:
    return bool(text) and all(map(is_word_character, text))


@dataclass(frozen=True, eq=False)
class _Candidate:
    """Tokens behind the context: a node of the tree."""

    text: str = ""
    logprob: float = 0.0
    path: tuple[int, ...] = ()  #: its tokens
    slots: tuple[int, ...] = ()  #: where they are in the cache, as far as they are in it


@dataclass(frozen=True, eq=False)
class _Followed:
    """A candidate, and the probability of each token behind it."""

    candidate: _Candidate
    following: torch.Tensor  #: (vocabulary,)
    continued: list[int]  #: the likeliest tokens that go on with its word
    probability: float  #: that the text goes on with the candidate, and its word ends there


class Suggester:
    """Suggests next words by a model with its current parameters.

    It keeps the cache of the last context with its candidates: one more letter needs a pass over new candidates alone,
    and a word that was a candidate is part of the next context without a pass. It also remembers how often a word ended
    with each first token, which changes little between contexts: with that, most questions need no candidates.
    """

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._cache = DynamicCache()  # no sliding windows in it: they could not be cut
        self._tokens: list[int] = []
        self._following: torch.Tensor | None = None  #: (vocabulary,) probabilities behind those tokens
        self._nodes: dict[tuple[int, ...], _Followed] = {}  #: the candidates behind them, by their tokens
        self._endings: dict[int, list[float]] = {}  #: by first token: probabilities that a word ended with it

    @torch.inference_mode()
    def suggest(
        self,
        context: Sequence[int],
        beginning: str,
        *,
        n: int,
        words: int = 1,
        late: Callable[[], bool] = lambda: False,
    ) -> list[Suggestion]:
        """The n likeliest words behind the context that begin like this, each with up to `words` - 1 behind it.

        context: tokens, at least one. late: whether to end the search, with what it has found.
        """
        self._follow(context[cut(len(context), MAX_TOKENS) :])
        beginnings = self._vocabulary.beginning(beginning)
        first = self._children(_Candidate(), self._following, beginnings, _CANDIDATES * n)
        if words == 1 and (estimated := self._estimated(first, beginning, n)):
            return estimated
        found = self._searched(first, beginning, n, late)
        if not found:  # too late: as if every word ended with its first token
            whole = [one for one in first if len(one.text) > len(beginning)]
            return [Suggestion(one.text.strip(), math.exp(one.logprob)) for one in whole[:n]]
        if words > 1:
            found = self._lengthened(found, words, late)
        return [Suggestion(one.candidate.text.strip(), one.probability) for one in found]

    def _follow(self, tokens: Sequence[int]) -> None:
        """Let the cache hold these tokens; only those are computed that it does not."""
        same = 0
        while same < min(len(tokens), len(self._tokens)) and tokens[same] == self._tokens[same]:
            same += 1
        if same == len(self._tokens):
            same += self._adopt(tokens[same:])
        if same == len(tokens) == len(self._tokens) and self._following is not None:
            if len(self._nodes) > _MAX_NODES:
                self._shorten(same)
            return
        same = min(same, len(tokens) - 1)
        self._shorten(same)
        self._tokens, self._following = list(tokens[:same]), None  # true also if the pass fails
        logits = self._model.next_logits(torch.tensor([list(tokens[same:])]), self._cache)[0]
        self._tokens, self._following = list(tokens), logits.softmax(-1)

    def _adopt(self, tokens: Sequence[int]) -> int:
        """Make as many of these tokens part of the context as were a candidate; returns their number."""
        for count in range(len(tokens), 0, -1):
            if (node := self._nodes.get(tuple(tokens[:count]))) is not None:
                kept = torch.tensor([*range(len(self._tokens)), *node.candidate.slots])
                for layer in self._cache.layers:
                    assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
                    layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
                self._tokens, self._following, self._nodes = [*self._tokens, *tokens[:count]], node.following, {}
                return count
        return 0

    def _shorten(self, tokens: int) -> None:
        """Let the cache hold its first tokens alone, which are of the context."""
        self._nodes = {}
        if more := self._cache.get_seq_length() - tokens:
            self._cache.crop(-more)

    def _estimated(self, first: list[_Candidate], beginning: str, n: int) -> list[Suggestion]:
        """The n likeliest words of one token, by what is remembered. Empty where a longer word may be likelier."""
        whole, longer = dict[str, float](), 0.0
        for one in first:
            probability, ending = math.exp(one.logprob), 0.0
            if len(one.text) > len(beginning) and (known := self._endings.get(one.path[0])):
                ending = fmean(known)
                whole.setdefault(one.text.strip(), probability * ending)
            longer = max(longer, probability * (1 - ending))
        best = sorted(whole.items(), key=lambda one: -one[1])[:n]
        return [Suggestion(*one) for one in best] if len(best) == n and longer <= best[-1][1] else []

    def _searched(
        self, candidates: list[_Candidate], beginning: str, n: int, late: Callable[[], bool]
    ) -> list[_Followed]:
        """The n likeliest words, the likeliest first: a beam search that ends when no other one can be likelier."""
        found: dict[str, _Followed] = {}
        while candidates and not late():
            children: list[_Candidate] = []
            for one in self._passed(candidates):
                text = one.candidate.text
                if len(text) > len(beginning) and (text not in found or one.probability > found[text].probability):
                    found[text] = one
                if len(one.candidate.path) < _WORD_TOKENS:
                    children += self._continued(one, beginning[len(text) :])
            best = sorted(found.values(), key=lambda one: -one.probability)[:n]
            least = best[-1].probability if len(best) == n else 0.0
            children.sort(key=lambda one: -one.logprob)
            candidates = [one for one in children[: _CANDIDATES * n] if math.exp(one.logprob) > least]
        return sorted(found.values(), key=lambda one: -one.probability)[:n]

    def _continued(self, one: _Followed, missing: str) -> list[_Candidate]:
        """The candidate with another token of its word. missing: what it lacks of the beginning."""
        tokens = self._vocabulary.beginning(missing) if missing else one.continued
        return self._children(one.candidate, one.following, tokens, _BRANCHES)

    def _children(
        self, parent: _Candidate, following: torch.Tensor | None, tokens: Sequence[int], count: int
    ) -> list[_Candidate]:
        """The parent with each of the likeliest of these tokens."""
        assert following is not None
        best = following[torch.tensor(tokens, dtype=torch.long)].log().topk(min(count, len(tokens)))
        return [
            replace(
                parent,
                text=parent.text + self._vocabulary.texts[tokens[place]],
                logprob=parent.logprob + value,
                path=(*parent.path, tokens[place]),
            )
            for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _passed(self, candidates: Sequence[_Candidate]) -> list[_Followed]:
        """What follows each candidate, in one pass over the new ones."""
        if new := [one for one in candidates if one.path not in self._nodes]:
            self._nodes |= {one.candidate.path: one for one in self._computed(new)}
        return [self._nodes[one.path] for one in candidates]

    def _computed(self, candidates: Sequence[_Candidate]) -> list[_Followed]:
        """The same for candidates of which the last token is not in the cache."""
        context, start = len(self._tokens), self._cache.get_seq_length()
        dtype = self._model.context.dtype
        mask = torch.full((len(candidates), start + len(candidates)), torch.finfo(dtype).min, dtype=dtype)
        mask[:, :context] = 0
        cached = [replace(one, slots=(*one.slots, start + row)) for row, one in enumerate(candidates)]
        for row, one in enumerate(cached):
            mask[row, list(one.slots)] = 0
        logits = self._model.all_logits(
            torch.tensor([[one.path[-1] for one in candidates]]),
            self._cache,
            attention_mask=mask[None, None],
            position_ids=torch.tensor([[context + len(one.path) - 1 for one in candidates]]),
        )
        following = logits.softmax(-1)
        ended = (following @ self._vocabulary.ending).tolist()
        continued = (following * self._vocabulary.continues).topk(_BRANCHES).indices.tolist()
        for one, end in zip(candidates, ended, strict=True):
            if len(one.path) == 1:
                self._endings[one.path[0]] = [*self._endings.get(one.path[0], []), end][-_ENDINGS:]
        return [
            _Followed(one, row, tokens, math.exp(one.logprob) * end)
            for one, row, tokens, end in zip(cached, following, continued, ended, strict=True)
        ]

    def _lengthened(self, found: list[_Followed], words: int, late: Callable[[], bool]) -> list[_Followed]:
        """Each with the likeliest words behind it, up to `words` in all, as far as its sentence goes."""
        whole, growing = list(found), dict(enumerate(found))
        for count in range(_TOKENS_PER_WORD * (words - 1)):
            longer = {place: self._next(one, words, is_whole=count == 0) for place, one in growing.items()}
            candidates = {place: one for place, one in longer.items() if one is not None}
            if not candidates or late():
                break
            growing = dict(zip(candidates, self._passed(list(candidates.values())), strict=True))
            for place, one in growing.items():
                if self._vocabulary.ending[one.following.argmax()]:
                    whole[place] = one
        return whole

    def _next(self, one: _Followed, words: int, *, is_whole: bool) -> _Candidate | None:
        """With its likeliest next token; None where the phrase ends. is_whole: its word ends here."""
        token = int((one.following * self._vocabulary.ending if is_whole else one.following).argmax())
        spaced = self._vocabulary.is_spaced_word(token)
        if spaced and len(one.candidate.text.split()) == words:
            return None
        if not spaced and not self._vocabulary.continues[token]:
            return None
        return self._children(one.candidate, one.following, [token], 1)[0]


def cut(size: int, most: int) -> int:
    """Where to begin with `size` of something so that at most `most` are left, and at least half of that."""
    step = most // 2
    return max(0, -(-(size - most) // step) * step)
