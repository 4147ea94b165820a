"""Sampling tokens from a model, and scoring tokens by it."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import DynamicCache

from pocketllm.engine.generate.streaming_text import Sampling
from pocketllm.engine.streamed.model import LanguageModel

#: Prompt tokens per forward pass, which bounds its memory.
_PROMPT_CHUNK = 256
#: The same if each token is scored, which takes fp32 logits of the whole vocabulary for each.
_SCORED_CHUNK = 32


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability (natural logarithm), by the model without temperature and top_p."""

    token: int
    logprob: float | None = None  #: None for the first token of all
    likeliest: tuple[tuple[int, float], ...] = ()


def greedy(model: LanguageModel, prompt: Sequence[int], *, stop_ids: Collection[int], max_tokens: int) -> list[int]:
    """The greedy continuation of the prompt, up to one of `stop_ids`.

    The beginning of a prompt that is too long for the model's context is cut.
    """
    limit = getattr(model.network.config, "max_position_embeddings", None)
    kept = list(prompt) if limit is None else list(prompt[-max(1, limit - max_tokens) :])
    sampled = sample(model, kept, Sampling(temperature=0, max_tokens=max_tokens))
    return list(takewhile(lambda token: token not in stop_ids, sampled))


@torch.inference_mode()
def score(model: LanguageModel, tokens: Sequence[int], alternatives: int) -> list[Scored]:
    """Each token's log-probability given those before it, with this many of the likeliest alternatives."""
    found = [Scored(tokens[0])]
    cache = DynamicCache(config=model.network.config)
    for start in range(0, len(tokens) - 1, _SCORED_CHUNK):
        part = list(tokens[start : min(start + _SCORED_CHUNK, len(tokens) - 1)])
        logits = model.all_logits(torch.tensor([part]), cache)
        after = tokens[start + 1 : start + 1 + len(part)]
        for token, row in zip(after, logits, strict=True):
            logprobs = torch.log_softmax(row, -1)
            best = logprobs.topk(min(alternatives, len(logprobs)))
            likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found.append(Scored(token, float(logprobs[token]), likeliest))
    return found


@torch.inference_mode()
def sample(model: LanguageModel, prompt: Sequence[int], sampling: Sampling) -> Generator[int]:
    """Yield up to max_tokens tokens that continue the prompt. The same arguments give the same tokens."""
    cache = DynamicCache(config=model.network.config)
    generator = torch.Generator().manual_seed(sampling.seed)
    for start in range(0, len(prompt), _PROMPT_CHUNK):
        logits = model.next_logits(torch.tensor([list(prompt[start : start + _PROMPT_CHUNK])]), cache)[0]
    for count in range(sampling.max_tokens):
        token = choose(logits, sampling, generator)
        yield token
        if count + 1 < sampling.max_tokens:
            logits = model.next_logits(torch.tensor([[token]]), cache)[0]


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample a token from (vocabulary,) logits: temperature, then the smallest set with probability top_p."""
    if sampling.is_greedy:
        return int(logits.argmax())
    probabilities, tokens = torch.softmax(logits / sampling.temperature, -1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities  # of all likelier tokens; the likeliest one is always kept
    kept = probabilities * (before <= 0).logical_or(before < sampling.top_p)
    return int(tokens[torch.multinomial(kept, 1, generator=generator)])
