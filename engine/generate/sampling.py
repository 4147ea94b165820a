"""Drawing tokens from the model's own probabilities, and scoring tokens by them."""

from collections.abc import Collection, Generator, Iterator, Sequence
from itertools import takewhile

import torch
from transformers import DynamicCache

from pocketllm.engine.generate.streaming_text import Sampling, Scored
from pocketllm.engine.streamed.model import LanguageModel

#: Prompt tokens that pass through the layers at once: bounds the memory that a long prompt takes.
_PROMPT_CHUNK = 256
#: The same where each of them is scored, which takes fp32 logits of the whole vocabulary for each.
_SCORED_CHUNK = 32


class ModelTokens:
    """A model as a source of tokens, at the point that it is set to."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def tokens(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Scored]:
        """Tokens to go on with, each scored where that was asked for. Same arguments, same tokens."""
        for token, logits in _drawn(self._model, prompt, sampling):
            yield Scored(token) if sampling.alternatives is None else _scored(token, logits, sampling.alternatives)


def greedily(model: LanguageModel, prompt: Sequence[int], *, ends: Collection[int], most_tokens: int) -> list[int]:
    """The likeliest token after the prompt's, and after that one, and so on, up to one of `ends`: token ids.

    Of a prompt that is too long for the model's context the beginning is left out.
    """
    limit = getattr(model.network.config, "max_position_embeddings", None)
    kept = list(prompt) if limit is None else list(prompt[-max(1, limit - most_tokens) :])
    drawn = _drawn(model, kept, Sampling(temperature=0, max_tokens=most_tokens))
    return list(takewhile(lambda token: token not in ends, (token for token, _ in drawn)))


@torch.inference_mode()
def score(model: LanguageModel, tokens: Sequence[int], alternatives: int) -> list[Scored]:
    """Each token's log-probability after those before it, with so many of the likeliest in its place."""
    found = [Scored(tokens[0])]
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


@torch.inference_mode()
def _drawn(model: LanguageModel, prompt: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield up to max_tokens sampled tokens, each with the (vocabulary,) logits that it was drawn by."""
    cache = DynamicCache(config=model.network.config)
    generator = torch.Generator().manual_seed(sampling.seed)
    for start in range(0, len(prompt), _PROMPT_CHUNK):
        logits = model.next_logits(torch.tensor([list(prompt[start : start + _PROMPT_CHUNK])]), cache)[0]
    for count in range(sampling.max_tokens):
        token = choose(logits, sampling, generator)
        yield token, logits
        if count + 1 < sampling.max_tokens:
            logits = model.next_logits(torch.tensor([[token]]), cache)[0]


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Sample a token from (vocabulary,) logits: temperature, then the smallest set with probability top_p."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, tokens = torch.softmax(logits / sampling.temperature, -1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities  # of all likelier tokens; the likeliest is always kept
    kept = probabilities * (before < sampling.top_p)
    return int(tokens[torch.multinomial(kept, 1, generator=generator)])
