"""Turning tokens into text: stop strings, characters that span tokens, where a text ends.

Nothing here imports torch or transformers: the tokens may come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from pocketllm.engine.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose tokens. temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    alternatives: int | None = None  #: score each token, and as many of the likeliest in its place; None: score none


@dataclass(frozen=True)
class Scored:
    """A token and the natural logarithm of its probability after all before it; of the first of all there is none.

    The probabilities are the model's own: temperature and top_p do not change them.
    """

    token: int
    logprob: float | None = None  #: None, too, where no scores were asked for
    likeliest: tuple[tuple[int, float], ...] = ()


class TokenSource(Protocol):
    """Where an answer's tokens come from."""

    def tokens(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Scored]:
        """Up to max_tokens tokens to go on with; fewer only where the text ends. Closing it stops the work."""


class TextTokenizer(Protocol):
    """What is needed of a tokenizer: transformers' have it."""

    @property
    def eos_token_id(self) -> Any:
        """The end token's id, if there is an end token."""

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> Any:
        """The tokens as text."""


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """What a model's tokens stand for."""

    tokenizer: TextTokenizer
    ends: frozenset[int]  #: the tokens at which a text ends
    context: int | None  #: tokens of prompt and answer together, at most; None: no limit is known


@dataclass(kw_only=True)
class Generation:
    """A running or finished generation. Iterate over `pieces`; the rest is final once that ends."""

    pieces: Iterator[str]
    prompt_tokens: int
    completion_tokens: int = 0
    finish_reason: str = "length"  # or "stop"
    text: str = field(default="")
    scored: list[Scored] = field(default_factory=list)  #: of the answer's tokens, where that was asked for


def generate(
    source: TokenSource,
    lexicon: Lexicon,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generation:
    """Continue the prompt's tokens with those that the source gives.

    Raises BadRequest when prompt and answer do not fit into the model's context.
    """
    limit = lexicon.context
    if limit is not None and len(prompt) + sampling.max_tokens > limit:
        raise BadRequest(
            f"The prompt's {len(prompt)} tokens and max_tokens {sampling.max_tokens} exceed the model's context "
            f"of {limit} tokens. Shorten the prompt or lower max_tokens."
        )
    if not prompt:
        raise BadRequest("The prompt is empty. Send some text to continue.")
    generation = Generation(pieces=iter(()), prompt_tokens=len(prompt))
    generation.pieces = _pieces(generation, source.tokens(prompt, sampling), lexicon, sampling, cancelled)
    return generation


def _pieces(
    generation: Generation,
    tokens: Generator[Scored],
    lexicon: Lexicon,
    sampling: Sampling,
    cancelled: Callable[[], bool],
) -> Iterator[str]:
    """Yield text as it becomes certain: never half a character, never the beginning of a stop string."""
    tokenizer = lexicon.tokenizer
    given: list[int] = []
    with closing(tokens):
        for scored in tokens:
            if cancelled():
                return
            if scored.token in lexicon.ends:
                break
            given.append(scored.token)
            generation.completion_tokens = len(given)
            if sampling.alternatives is not None:
                generation.scored.append(scored)
            text = tokenizer.decode(given, skip_special_tokens=True)
            assert isinstance(text, str)
            at = min((place for stop in sampling.stop if (place := text.find(stop)) >= 0), default=-1)
            if at >= 0:
                generation.finish_reason = "stop"
                while generation.scored and len(tokenizer.decode(given[: len(generation.scored) - 1])) >= at:
                    generation.scored.pop()  # it begins behind the end
                yield from _advance(generation, text[:at])
                return
            yield from _advance(generation, text[: len(text) - _uncertain(text, sampling.stop)])
    if len(given) < sampling.max_tokens:
        generation.finish_reason = "stop"
    whole = tokenizer.decode(given, skip_special_tokens=True)
    assert isinstance(whole, str)
    yield from _advance(generation, whole)


def _advance(generation: Generation, text: str) -> Iterator[str]:
    if len(text) > len(generation.text):
        piece, generation.text = text[len(generation.text) :], text
        yield piece


def _uncertain(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may still change: an unfinished character, or the start of a stop string."""
    if text.endswith("\N{REPLACEMENT CHARACTER}"):
        return len(text) - len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
        default=0,
    )


def end_tokens(configured: int | Sequence[int] | None, tokenizer: TextTokenizer) -> frozenset[int]:
    """The tokens that end a text: the config's and the tokenizer's end tokens, and the separator of training."""
    own = [configured] if configured is None or isinstance(configured, int) else configured
    ends = {*own, tokenizer.eos_token_id, eos_id(tokenizer)}
    return frozenset(token for token in ends if token is not None)


def eos_id(tokenizer: TextTokenizer) -> int:
    """The token that stands between texts: <|endoftext|> where there is one, else the end token."""
    token = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if token is None:
        raise BadRequest("The model's tokenizer has no end token, so texts cannot be told apart. Use another model.")
    return int(token)
