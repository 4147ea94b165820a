"""Pseudo-rehearsal (Robins, 1995): samples of the base model itself are learned beside the owner's text.

Cross-entropy on a model's own samples is KL(base || adapted) plus a constant, so a few of them in each step hold the
model where the owner's text says nothing, and nobody's text is needed for it. They are drawn once a model: some of
text, the others from where a user's message begins, for the manners of a model that has learned to chat.

Those of text begin, as the owner's blocks do, anywhere in it: what they were begun with is left out. With it the model
learns to tell them by it, and writes like the owner wherever it is missing (on bench.harm's ordinary text, after 60
steps on a diary: 0.15 nats a token worse with it, 0.04 without).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import ceil

import torch
from jinja2 import TemplateError
from safetensors.torch import load_file
from transformers import DynamicCache, PreTrainedTokenizerBase

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.formats.safetensors_io import write_tensors
from pocketllm.engine.generate.streaming_text import eos_id
from pocketllm.engine.streamed.loss import IGNORE_INDEX
from pocketllm.engine.streamed.model import LanguageModel

#: Beside the model's weights.
FILE_NAME = "samples.safetensors"
#: Samples at most, and tokens of each.
MAX_SAMPLES, TOKENS = 384, 64
#: Drawn at the same time: more take more memory for their keys and values, fewer more time.
AT_ONCE = 16


def blocks_of_step(share: float, batch: int) -> int:
    """How many of a step's blocks are samples: about this share, at least one, but never all."""
    return max(1, round(share * batch)) if share > 0 and batch > 1 else 0


def openings(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """What samples begin with: the token between texts; and what stands before a user's message, if the model chats."""
    found = [[eos_id(tokenizer)]]
    if tokenizer.chat_template:
        mark = "pocketllm"
        with suppress(TemplateError):  # some take no single message
            text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
            ids = tokenizer(str(text).partition(mark)[0], add_special_tokens=False)["input_ids"]
            assert isinstance(ids, list)
            found.append(ids[-TOKENS // 2 :])
    return found


def rehearsal_blocks(
    model: LanguageModel, openings: Sequence[Sequence[int]], *, wanted: int, on_part: Callable[[int, int], None]
) -> Batch:
    """As many of the model's samples as are wanted, drawn where they are not there yet. The model is left at its base.

    wanted: as many as the steps of a job rehearse, for what is seen again and again is learned by heart and holds
    nothing; there are no more than MAX_SAMPLES. on_part: called with how many there are and how many there will be,
    after each part that was drawn; a kill costs no more than a part.
    """
    parts = ceil(min(wanted, MAX_SAMPLES) / AT_ONCE)
    file = model.folder.path / FILE_NAME
    samples = load_file(file) if file.is_file() else {}
    model.use(None)
    for part in range(parts):
        if str(part) not in samples:
            opening = openings[part % len(openings)]
            samples[str(part)] = _draw(model, opening, generator=torch.Generator().manual_seed(part))
            write_tensors(file, samples)
            on_part(AT_ONCE * (part + 1), AT_ONCE * parts)
    rows = [_row(samples[str(part)], openings[part % len(openings)]) for part in range(parts)]
    inputs, targets = (torch.cat(some) for some in zip(*rows, strict=True))
    return Batch(inputs=inputs, targets=targets)


def _draw(model: LanguageModel, opening: Sequence[int], *, generator: torch.Generator) -> torch.Tensor:
    """(AT_ONCE, TOKENS + 2) int64: rows that begin with the opening, sampled at temperature one."""
    ids = torch.tensor([list(opening)]).repeat(AT_ONCE, 1)
    cache, new = DynamicCache(config=model.network.config), ids
    while ids.shape[1] < TOKENS + 2:
        new = torch.multinomial(model.next_logits(new, cache).softmax(1), 1, generator=generator)
        ids = torch.cat((ids, new), 1)
    return ids


def _row(ids: torch.Tensor, opening: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(AT_ONCE, TOKENS) inputs, and what follows each: no target where it was not sampled.

    A separator is left out; what stands before a user's message stays, for there it always does.
    """
    if len(opening) == 1:
        return ids[:, 1:-1], ids[:, 2:]
    targets = ids[:, 1:-1].clone()
    targets[:, : len(opening) - 1] = IGNORE_INDEX
    return ids[:, :-2], targets
