"""Turning next-token probabilities into text: sampling, stop strings, and characters that span tokens."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from pocketllm.mezo.errors import BadRequest
from pocketllm.mezo.model import LanguageModel

#: Prompt tokens that pass through the layers at once: bounds the memory that a long prompt takes.
_PROMPT_CHUNK = 256
#: The same where each of them is scored, which takes fp32 logits of the whole vocabulary for each.
_SCORED_CHUNK = 32


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
    logprob: float | None
    likeliest: tuple[tuple[int, float], ...] = ()


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
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generation:
    """Continue the prompt's tokens at the point that the model is set to.

    Same arguments, same text. Raises BadRequest when prompt and answer do not fit into the model's context.
    """
    limit = getattr(model.network.config, "max_position_embeddings", None)
    if limit is not None and len(prompt) + sampling.max_tokens > limit:
        raise BadRequest(
            f"The prompt's {len(prompt)} tokens and max_tokens {sampling.max_tokens} exceed the model's context "
            f"of {limit} tokens. Shorten the prompt or lower max_tokens."
        )
    if not prompt:
        raise BadRequest("The prompt is empty. Send some text to continue.")
    generation = Generation(pieces=iter(()), prompt_tokens=len(prompt))
    generation.pieces = _pieces(generation, model, tokenizer, list(prompt), sampling, cancelled)
    return generation


def _pieces(
    generation: Generation,
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    sampling: Sampling,
    cancelled: Callable[[], bool],
) -> Iterator[str]:
    """Yield text as it becomes certain: never half a character, never the beginning of a stop string."""
    ends = end_tokens(model, tokenizer)
    given: list[int] = []
    for token, logits in _tokens(model, prompt, sampling):
        if cancelled():
            return
        if token in ends:
            generation.finish_reason = "stop"
            break
        given.append(token)
        generation.completion_tokens = len(given)
        if sampling.alternatives is not None:
            generation.scored.append(_scored(token, logits, sampling.alternatives))
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


def greedily(model: LanguageModel, prompt: Sequence[int], *, ends: Collection[int], most_tokens: int) -> list[int]:
    """The likeliest token after the prompt's, and after that one, and so on, up to one of `ends`: token ids.

    Of a prompt that is too long for the model's context the beginning is left out.
    """
    limit = getattr(model.network.config, "max_position_embeddings", None)
    kept = list(prompt) if limit is None else list(prompt[-max(1, limit - most_tokens) :])
    tokens = _tokens(model, kept, Sampling(temperature=0, max_tokens=most_tokens))
    return list(takewhile(lambda token: token not in ends, (token for token, _ in tokens)))


@torch.inference_mode()
def score(model: LanguageModel, tokens: Sequence[int], alternatives: int) -> list[Scored]:
    """Each token's log-probability after those before it, with so many of the likeliest in its place."""
    found = [Scored(tokens[0], None)]
    cache = DynamicCache(config=model.network.config)
    for start in range(0, len(tokens) - 1, _SCORED_CHUNK):
        part = list(tokens[start : min(start + _SCORED_CHUNK, len(tokens) - 1)])
        logits = model.all_logits(torch.tensor([part]), cache)
        after = tokens[start + 1 : start + 1 + len(part)]
        found += [_scored(token, row, alternatives) for token, row in zip(after, logits, strict=True)]
    return found


def _scored(token: int, logits: torch.Tensor, alternatives: int) -> Scored:
    logprobs = torch.log_softmax(logits, -1)
    best = logprobs.topk(min(alternatives, len(logprobs)))
    likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Scored(token, float(logprobs[token]), likeliest)


def end_tokens(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text: the tokenizer's and the config's end tokens, and the separator of training."""
    configured = model.network.config.eos_token_id
    ends = set(configured) if isinstance(configured, list) else {configured}
    return {token for token in ends | {tokenizer.eos_token_id, separator(tokenizer)} if token is not None}


def separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands between texts: <|endoftext|> where there is one, else the end token."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    token = vocabulary.get("<|endoftext|>", tokenizer.eos_token_id)
    if token is None:
        raise BadRequest("The model's tokenizer has no end token, so texts cannot be told apart. Use another model.")
    return int(token)


@torch.inference_mode()
def _tokens(model: LanguageModel, prompt: list[int], sampling: Sampling) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield up to max_tokens sampled tokens, each with the (vocabulary,) logits that it was drawn by."""
    cache = DynamicCache(config=model.network.config)
    generator = torch.Generator().manual_seed(sampling.seed)
    for start in range(0, len(prompt), _PROMPT_CHUNK):
        logits = model.next_logits(torch.tensor([prompt[start : start + _PROMPT_CHUNK]]), cache)
    for count in range(sampling.max_tokens):
        token = choose(logits, sampling, generator)
        yield token, logits
        if count + 1 < sampling.max_tokens:
            logits = model.next_logits(torch.tensor([[token]]), cache)


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample a token from (vocabulary,) logits: temperature, then the smallest set with probability top_p."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, tokens = torch.softmax(logits / sampling.temperature, -1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities  # of all likelier tokens; the likeliest is always kept
    kept = probabilities * (before < sampling.top_p)
    return int(tokens[torch.multinomial(kept, 1, generator=generator)])
