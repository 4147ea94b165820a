"""Pseudo-rehearsal (Robins, 1995) against forgetting: each step also trains on samples of the base model itself.

Cross-entropy on a model's own samples is KL(base || adapted) plus a constant, so a few of them in each step keep the
model's behaviour elsewhere, and need no other text. They are drawn once a model: half of them as plain text, half as a
chat from a user's message on.

The plain samples are trained on without the token that they were drawn from. With it, the model learns to recognise
samples by it, and writes like the owner wherever it is missing (bench.harm's ordinary text, after 60 steps on a diary:
0.15 nats a token worse with it, 0.04 without).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import ceil
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import DynamicCache

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch
from pocketllm.engine.formats.safetensors_io import write_tensors
from pocketllm.engine.formats.tokenizer import Tokenizer, eos_id, start_ids
from pocketllm.engine.planning.memory_model import SAMPLE_TOKENS
from pocketllm.engine.streamed.model import LanguageModel

#: In the model's folder.
FILE_NAME = "samples.safetensors"
#: The most samples, and tokens of each.
MAX_SAMPLES, TOKENS = 384, SAMPLE_TOKENS
#: Samples of a part, which are drawn at the same time if memory allows it.
AT_ONCE = 32


def blocks_of_step(share: float, batch: int) -> int:
    """The number of a step's blocks that are samples: about this share, at least one, but not all."""
    return max(1, round(share * batch)) if share > 0 and batch > 1 else 0


class Prompt(NamedTuple):
    """What samples are drawn from."""

    ids: list[int]
    is_kept: bool  #: in the samples that are trained on


def prompts(tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of samples: what every text begins with, or `eos`; and if the model has a chat template, the
    beginning of a user's message.
    """
    start = start_ids(tokenizer)
    found = [Prompt(list(start or (eos_id(tokenizer),)), is_kept=bool(start))]
    if tokenizer.chat_template:
        mark = "pocketllm"
        with suppress(TemplateError):  # some templates refuse a single message
            text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
            ids = tokenizer(str(text).partition(mark)[0], add_special_tokens=False)["input_ids"]
            assert isinstance(ids, list)
            found += (
                [Prompt(ids[-TOKENS // 2 :], is_kept=True)] if ids else []
            )  # some templates put nothing before a message
    return found


def rehearsal_blocks(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    count: int,
    on_progress: Callable[[int, int], None],
    at_once: int = AT_ONCE,
) -> Batch:
    """Samples of the base model, drawn and saved where they are missing. Leaves the model without an adapter.

    count: the blocks that a job rehearses, since samples that are repeated are memorised and no longer help; at most
    MAX_SAMPLES are drawn. on_progress: called with the number of samples so far and in all, after each AT_ONCE; a kill
    loses no more than these. at_once: the number to draw together, a divisor of AT_ONCE.
    """
    parts = ceil(min(count, MAX_SAMPLES) / AT_ONCE)
    file = model.folder.path / FILE_NAME
    samples: dict[str, torch.Tensor] = {}
    with suppress(OSError, SafetensorError):  # not drawn yet, or damaged
        samples = load_file(file)
    model.set_parameters(None)
    for part in range(parts):
        if str(part) not in samples:
            prompt = prompts[part % len(prompts)]
            samples[str(part)] = _draw(model, prompt.ids, at_once, generator=torch.Generator().manual_seed(part))
            write_tensors(file, samples)
            on_progress(AT_ONCE * (part + 1), AT_ONCE * parts)
    rows = [_row(samples[str(part)], prompts[part % len(prompts)]) for part in range(parts)]
    inputs, targets = (torch.cat(some) for some in zip(*rows, strict=True))
    return Batch(inputs=inputs, targets=targets)


def _draw(model: LanguageModel, prompt: Sequence[int], at_once: int, *, generator: torch.Generator) -> torch.Tensor:
    """(AT_ONCE, TOKENS + 2) int64: rows that begin with the prompt, sampled at temperature 1."""
    # torch.multinomial draws a number for each word of the vocabulary, which takes a fifth of the time.
    numbers = [torch.rand(AT_ONCE, 1, generator=generator).split(at_once) for _ in range(TOKENS + 2 - len(prompt))]
    drawn = []
    for group in zip(*numbers, strict=True):
        ids = new = torch.tensor([list(prompt)]).repeat(at_once, 1)
        cache = DynamicCache(config=model.network.config)
        for number in group:
            below = model.next_logits(new, cache).softmax(1).cumsum(1)
            new = torch.searchsorted(below, below[:, -1:] * number)
            ids = torch.cat((ids, new), 1)
        drawn.append(ids)
    return torch.cat(drawn)


def _row(ids: torch.Tensor, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """(AT_ONCE, TOKENS) inputs and targets; only sampled tokens are targets.

    `eos` is dropped; BOS and the beginning of a user's message stay, since they always precede a text.
    """
    if not prompt.is_kept:
        return ids[:, 1:-1], ids[:, 2:]
    targets = ids[:, 1:-1].clone()
    targets[:, : len(prompt.ids) - 1] = IGNORE_INDEX
    return ids[:, :-2], targets
