"""Streams text from tokens: stop strings, characters that span tokens, the end of a text.

Imports neither torch nor transformers: the tokens may come from llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pocketllm.engine.errors import BadRequest

if TYPE_CHECKING:
    from pocketllm.engine.formats.tokenizer import Decoding

#: Logits divided by less overflow; the likeliest token has all of the probability long before.
LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters. A temperature below LEAST_TEMPERATURE is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    json_schema: dict[str, Any] | None = None  #: which the answer is to follow; llama.cpp alone can do that

    @property
    def is_greedy(self) -> bool:
        """Whether always the likeliest token is taken."""
        return self.temperature < LEAST_TEMPERATURE


#: A source of tokens: yields up to max_tokens that continue the prompt, fewer only if the text ends. Closing it stops.
TokenSource = Callable[[Sequence[int], Sampling], Generator[int]]


@dataclass(kw_only=True)
class Generation:
    """A generation. Iterate over `pieces`; the other fields are final when it ends."""

    pieces: Iterator[str]
    prompt_tokens: int
    finish_reason: str = "length"  # or "stop"
    text: str = ""
    completion_tokens: int = 0  #: with those behind a stop string
    tokens: list[int] = field(default_factory=list)  #: without them


def generate(
    source: TokenSource,
    decoding: Decoding,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generation:
    """Continue the prompt with tokens from the source.

    The answer ends where the model's context does. Raises BadRequest when the prompt leaves no room in it, or is empty.
    """
    if not prompt:
        raise BadRequest("The prompt is empty. Send some text to continue.")
    if decoding.context is not None:
        room = decoding.context - len(prompt)
        if room < min(1, sampling.max_tokens):
            raise BadRequest(
                f"The prompt's {len(prompt)} tokens leave no room in the model's context of {decoding.context} tokens. "
                "Shorten the prompt."
            )
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
    generation = Generation(pieces=iter(()), prompt_tokens=len(prompt))
    if sampling.max_tokens:  # else llama.cpp would generate a token
        generation.pieces = _pieces(generation, source(prompt, sampling), decoding, sampling, cancelled)
    return generation


def _pieces(
    generation: Generation,
    tokens: Generator[int],
    decoding: Decoding,
    sampling: Sampling,
    cancelled: Callable[[], bool],
) -> Iterator[str]:
    """Yield text as soon as it is final: no incomplete character, and no beginning of a stop string."""
    tokenizer = decoding.tokenizer
    given = generation.tokens
    with closing(tokens):
        for token in tokens:
            if cancelled():
                return
            if token in decoding.stop_ids:
                break
            given.append(token)
            generation.completion_tokens = len(given)
            text = str(tokenizer.decode(given, skip_special_tokens=True))
            at = min((place for stop in sampling.stop if (place := text.find(stop)) >= 0), default=-1)
            if at >= 0:
                generation.finish_reason = "stop"
                while given and len(tokenizer.decode(given[:-1], skip_special_tokens=True)) >= at:
                    given.pop()  # it begins after the stop string
                yield from _advance(generation, text[:at])
                return
            yield from _advance(generation, text[: len(text) - _uncertain(text, sampling.stop)])
    if len(given) < sampling.max_tokens:
        generation.finish_reason = "stop"
    yield from _advance(generation, str(tokenizer.decode(given, skip_special_tokens=True)))


def _advance(generation: Generation, text: str) -> Iterator[str]:
    if len(text) > len(generation.text):
        piece, generation.text = text[len(generation.text) :], text
        yield piece


def _uncertain(text: str, stops: Sequence[str]) -> int:
    """The number of characters at the end that may change: the start of a stop string, and an incomplete character."""
    whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
    begun = (size for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size]))
    return len(text) - len(whole) + max(begun, default=0)
