"""The likeliest next words: a search over tokens, on the cache of what was typed before.

The candidates of a search are a tree behind the context, in which a token sees the context and its own ancestors
(SpecInfer, arXiv 2305.09781, section 4). So a pass over all of them reads the weights once and copies no cache.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from pocketllm.engine.errors import UnsupportedModel
from pocketllm.engine.generate.vocabulary import Dictionary, Vocabulary, is_word_character
from pocketllm.engine.generate.word_counts import WORD, WordCounts
from pocketllm.engine.streamed.model import LanguageModel

#: The context that counts, in characters and in tokens. What is longer loses half of that at a time, so that the cache
#: of its beginning stays valid meanwhile.
MAX_CHARACTERS, MAX_TOKENS = 4000, 512
#: Candidates of a pass, for each suggestion; continuations of a candidate; tokens of a word.
_CANDIDATES, _BRANCHES, _WORD_TOKENS = 3, 3, 6
#: Candidates that are kept between two questions about the same context.
_MAX_NODES = 60
#: Probabilities that are remembered of each token; and answers.
_ENDINGS, _ANSWERS = 8, 256
#: The probability that a known word ends where its token does, until that was seen; and the letters that it needs.
_USUAL_ENDING, _WORD_LETTERS = 0.97, 3
#: A word is suggested if it is at least so probable among all that begin as it is typed, and beside the likeliest; and
#: at all. Below, tokens come together that make no word.
FLOOR, LEAST = 2e-3, 1e-11
#: No pass is made for a word that is less probable than this part of the likeliest.
_SOUGHT = 0.01
#: Of the context, where its last word is looked for.
_WORD_CHARACTERS = 100
#: No space is missing after these.
_OPENING = '([{<"“‘«-–—/\n'  # noqa: RUF001


@dataclass(frozen=True)
class Suggestion:
    """A word that may come next, with what is typed of it; or behind a finished word, from the space on."""

    text: str
    probability: float  #: that the text goes on with exactly this word; mostly an estimate
    share: float  #: the same among all that begin as it is typed
    path: tuple[int, ...] = ()  #: its tokens, where the model has said it


@dataclass(frozen=True)
class Typed:
    """A text that is being typed, divided before its last word."""

    context: str  #: without the space at its end
    beginning: str  #: of the word, after that space
    may_be_whole: bool = False  #: the word may be finished: nobody says that it is not

    @classmethod
    def of(cls, context: str, prefix: str | None) -> "Typed":
        """prefix: what is typed of the word behind the context; None: the letters at the context's end."""
        may_be_whole = prefix is None
        if prefix is None:
            size = len(context)
            while size and is_word_character(context[size - 1]):
                size -= 1
            context, prefix = context[:size], context[size:]
            is_spaced = context.endswith((" ", "\t"))
        else:
            is_spaced = bool(context) and context[-1] not in _OPENING
        before = context.rstrip(" \t")
        beginning = f" {prefix}" if is_spaced and before and before[-1] != "\n" else prefix
        return cls(before, beginning, may_be_whole and bool(prefix))


@dataclass(frozen=True, eq=False)
class _Candidate:
    """Tokens behind the context: a node of the tree."""

    text: str = ""
    logprob: float = 0.0
    path: tuple[int, ...] = ()  #: its tokens
    slots: tuple[int, ...] = ()  #: where they are in the cache, as far as they are in it

    @property
    def probability(self) -> float:
        """That the text goes on with it."""
        return math.exp(self.logprob)


@dataclass(frozen=True, eq=False)
class _Followed:
    """A candidate, and the probability of each token behind it."""

    candidate: _Candidate
    following: torch.Tensor  #: (vocabulary,)
    continued: torch.Tensor  #: the likeliest tokens that go on with its word
    ending: float  #: the probability that its word ends there

    @property
    def probability(self) -> float:
        """That the text goes on with the candidate, and its word ends there."""
        return self.candidate.probability * self.ending


class Suggester:
    """Suggests next words by a model with its current parameters.

    It keeps the cache of the last context with its candidates: one more letter needs a pass over new candidates alone,
    and a word that was a candidate is part of the next context without a pass. It also remembers how often a word ended
    with each first token, which changes little between contexts: with that, most questions need no candidates.
    """

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary, dictionary: Dictionary | None = None) -> None:
        """Raises UnsupportedModel for a model whose cache cannot be cut where a candidate ends."""
        if set(getattr(model.network.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
            raise UnsupportedModel(
                "This model keeps a state of all that it has read, so it cannot suggest words. It can answer; for "
                "suggestions, use another model."
            )
        self._model, self._vocabulary, self._dictionary = model, vocabulary, dictionary
        self._cache = DynamicCache()  # no sliding windows in it: they could not be cut
        self._tokens: list[int] = []
        self._following: torch.Tensor | None = None  #: (vocabulary,) probabilities behind those tokens
        self._nodes: dict[tuple[int, ...], _Followed] = {}  #: the candidates behind them, by their tokens
        self._endings: dict[int, list[float]] = {}  #: by first token: probabilities that a word ended with it
        self._answers: dict[Any, list[Suggestion]] = {}  #: the last ones: what is remembered would change them

    @torch.inference_mode()
    def suggest(
        self,
        context: Sequence[int],
        typed: Typed,
        *,
        n: int,
        late: Callable[[], bool] = lambda: False,
        counts: WordCounts | None = None,
    ) -> tuple[list[Suggestion], bool]:
        """The n likeliest words behind the context that begin as typed, and whether the search was complete. Where the
        typed word is likelier whole than the beginning of any other one, the words behind it.

        context: tokens, at least one, of `typed.context`. late: whether to end the search, with what it has found.
        counts: the owner's words, which the model's are weighed with.
        """
        key = (*context,), typed, n, None if counts is None else counts.state
        found, complete, most = self._answers.get(key), True, n + typed.may_be_whole
        if found is None:
            self._follow(context[cut(len(context), MAX_TOKENS) :])
            assert self._following is not None
            beginnings = self._vocabulary.beginning(typed.beginning)
            total = float(self._following[beginnings].sum())
            first = self._children(_Candidate(), self._following, beginnings, _CANDIDATES * n)
            known: list[Dictionary | WordCounts] = []
            if self._dictionary and self._dictionary.is_of(typed.context):
                known = [self._dictionary, counts] if counts else [self._dictionary]
            if not typed.may_be_whole:
                found = self._estimated(first, total, typed.beginning, n, known)
            if not found:
                found, complete = self._searched(first, total, typed, most, late, known)
            if complete:
                self._answers[key] = found
                if len(self._answers) > _ANSWERS:
                    self._answers.pop(next(iter(self._answers)))
        ranked = found if counts is None else mixed(found, typed, counts, most)
        if not typed.may_be_whole:
            return ranked, complete
        whole = typed.beginning.strip()
        path = next((one.path for one in found if one.text == whole), ())
        if path and ranked[0].text == whole:
            behind = Typed(typed.context + typed.beginning, " ")
            following, done = self.suggest([*context, *path], behind, n=n, late=late, counts=counts)
            least = ranked[0].share * following[0].share if following else 0.0
            # A name that the owner writes may begin with another word.
            if not any(counts and one.text in counts and one.share > least for one in ranked[1:]):
                return [replace(one, text=f" {one.text}") for one in following], done
        return [one for one in ranked if one.text != whole][:n], complete

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

    def _estimated(
        self, first: list[_Candidate], total: float, beginning: str, n: int, known: Sequence[Dictionary | WordCounts]
    ) -> list[Suggestion]:
        """The n likeliest words of one token, by what is remembered. Empty where a longer word may be likelier."""
        whole, longer = dict[str, Suggestion](), 0.0
        for one in first:
            is_longer = len(one.text) > len(beginning)
            ended = one.probability * (self._ending(one, known) if is_longer else 0.0)
            if ended >= FLOOR * total and self._is_word(one, known):
                text = one.text.strip()
                whole.setdefault(text, Suggestion(text, ended, ended / total))
            longer = max(longer, one.probability - ended)
        best = sorted(whole.values(), key=lambda one: -one.probability)[:n]
        return best if len(best) == n and longer <= best[-1].probability else []

    def _ending(self, one: _Candidate, known: Sequence[Dictionary | WordCounts]) -> float:
        """The probability that a word ends with this first token, by what is remembered; 0 where nothing is known."""
        if seen := self._endings.get(one.path[0]):
            return fmean(seen)
        word = one.text.strip()
        is_known = len(word) >= _WORD_LETTERS and word.isalpha() and any(word in words for words in known)
        return _USUAL_ENDING if is_known else 0.0

    def _searched(
        self,
        first: list[_Candidate],
        total: float,
        typed: Typed,
        n: int,
        late: Callable[[], bool],
        known: Sequence[Dictionary | WordCounts],
    ) -> tuple[list[Suggestion], bool]:
        """See `suggest`: a beam search from the first tokens, that ends when no other word can be likelier.

        total: the probability of all that may begin as typed. As long as a token is shorter than what is typed, that
        is too much: most of what follows it is something else.
        """
        found: dict[str, _Followed] = {}
        size, least, pool = len(typed.beginning), 0.0, first
        while not late():
            candidates = [one for one in pool if len(one.text) <= size or one.probability >= FLOOR * total]
            if not candidates:
                break
            pool = [one for one in pool if one not in candidates]
            for one in self._passed(candidates):
                text, missing = one.candidate.text, typed.beginning[len(one.candidate.text) :]
                if missing:
                    fits = float(one.following[self._vocabulary.beginning(missing)].sum())
                    total -= one.candidate.probability * (1 - fits)
                is_whole = typed.may_be_whole and text == typed.beginning
                if is_whole or (len(text) > size and self._is_word(one.candidate, known)):
                    found[text] = max(found.get(text, one), one, key=lambda one: one.probability)
                if len(one.candidate.path) < _WORD_TOKENS:
                    longer = self._continued(one, missing)
                    pool += [one for one in longer if len(one.text) <= size or self._is_word(one, known, begun=True)]
            best = sorted(found.values(), key=lambda one: -one.probability)[:n]
            last = best[-1].probability if len(best) == n else 0.0
            whole = found[typed.beginning].probability if typed.beginning in found else 0.0
            least = max([last, whole, *(_SOUGHT * one.probability for one in best)])
            pool = sorted((one for one in pool if one.probability > least), key=lambda one: -one.logprob)
            pool = pool[: _CANDIDATES * n]
        total = max(1e-30, total)
        best = sorted(found.values(), key=lambda one: -one.probability)[:n]
        best = [one for one in best if one.probability >= max(LEAST, FLOOR * total, FLOOR * best[0].probability)]
        if not best and late():  # as if every word ended with its first token
            longer = [one for one in first if len(one.text) > size and one.probability >= FLOOR * total]
            spoken = [one for one in longer if self._is_word(one, known)]
            return [Suggestion(one.text.strip(), one.probability, one.probability / total) for one in spoken[:n]], False
        said = [(one.candidate, one.probability) for one in best]
        return [Suggestion(one.text.strip(), value, value / total, one.path) for one, value in said], not late()

    def _is_word(self, one: _Candidate, known: Sequence[Dictionary | WordCounts], *, begun: bool = False) -> bool:
        """Whether it ends in a word, or, with `begun`, in the beginning of one.

        known: the words; empty: all are. Capitals of a single token are, too: an abbreviation.
        """
        last = one.text.rpartition(" ")[2]
        if not known or (last.isupper() and self._vocabulary.texts[one.path[-1]].strip() == last):
            return True
        return any(words.begins(last) if begun else last in words for words in known)

    def _continued(self, one: _Followed, missing: str) -> list[_Candidate]:
        """The candidate with another token of its word. missing: what it lacks of the beginning."""
        tokens = self._vocabulary.beginning(missing) if missing else one.continued
        return self._children(one.candidate, one.following, tokens, _BRANCHES)

    def _children(
        self, parent: _Candidate, following: torch.Tensor, tokens: torch.Tensor, count: int
    ) -> list[_Candidate]:
        """The parent with each of the likeliest of these tokens."""
        best = following[tokens].topk(min(count, len(tokens)))
        return [
            replace(
                parent,
                text=parent.text + self._vocabulary.texts[token],
                logprob=parent.logprob + math.log(max(1e-30, value)),
                path=(*parent.path, token),
            )
            for token, value in zip(tokens[best.indices].tolist(), best.values.tolist(), strict=True)
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
        continued = (following * self._vocabulary.continues).topk(_BRANCHES).indices
        for one, end in zip(candidates, ended, strict=True):
            if len(one.path) == 1:
                self._endings[one.path[0]] = [*self._endings.get(one.path[0], []), end][-_ENDINGS:]
        return [
            _Followed(one, row, tokens, end)
            for one, row, tokens, end in zip(cached, following, continued, ended, strict=True)
        ]


def mixed(found: Sequence[Suggestion], typed: Typed, counts: WordCounts, n: int) -> list[Suggestion]:
    """The model's suggestions and the owner's own words, weighed together."""
    *_, before = ["", *WORD.findall(typed.context[-_WORD_CHARACTERS:])]
    own, weight = counts.beginning(before, typed.beginning.strip(), whole=typed.may_be_whole)
    shares = {one.text: (1 - weight) * one.share for one in found}
    for word, share in own.items():
        shares[word] = shares.get(word, 0.0) + weight * share
    # That a text begins as typed at all; unknown where the model has said nothing.
    begins = max((one.probability / one.share for one in found), default=1.0)
    best = sorted(shares.items(), key=lambda one: -one[1])[:n]
    return [Suggestion(text, begins * share, share) for text, share in best if share >= FLOOR]


def cut(size: int, most: int) -> int:
    """Where to begin with `size` of something so that at most `most` are left, and at least half of that."""
    step = most // 2
    return max(0, -(-(size - most) // step) * step)
