"""One text, divided as every contender of bench.learn gets it: what to learn from, and what to measure with.

`write` is called in a process of its own, since a tokenizer's memory is nobody's learning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, pack
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.formats.tokenizer import eos_id

#: The last tenth of the text is held out; at most this number of its blocks, evenly spread, is measured with.
HELD_OUT_ONE_IN, HELD_OUT_BLOCKS = 10, 64


@dataclass(frozen=True, kw_only=True)
class Division:
    """Blocks of equal length."""

    training: Batch
    held_out: Batch


def load(file: str) -> Division:
    """What `write` wrote."""
    arrays = np.load(file)
    return Division(
        training=_blocks(arrays["training_inputs"], arrays["training_targets"]),
        held_out=_blocks(arrays["held_out_inputs"], arrays["held_out_targets"]),
    )


def divide(text: str, encoded: Callable[[str], Sequence[int]], end: int, *, tokens: int) -> Division:
    """The blocks of a text, encoded as told; `end` ends a text. Raises SystemExit when there is too little."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    kept = max(1, len(paragraphs) // HELD_OUT_ONE_IN)
    if len(paragraphs) < 2 * HELD_OUT_ONE_IN:  # hardly divided by its writer: then by length
        cut = len(text) * (HELD_OUT_ONE_IN - 1) // HELD_OUT_ONE_IN
        paragraphs, kept = [text[:cut], text[cut:]], 1
    packed = []
    for some in (paragraphs[:-kept], paragraphs[-kept:]):
        packed.append(pack([encoded("\n\n".join(some))], length=tokens, eos=end))
    training, held_out = packed
    if len(training) < 2 or len(held_out) < 2:
        raise SystemExit(f"The text makes {len(training)} blocks to learn from and {len(held_out)} to measure with.")
    places = np.linspace(0, len(held_out) - 1, min(HELD_OUT_BLOCKS, len(held_out))).astype(np.int64)
    return Division(training=training, held_out=held_out[torch.from_numpy(places)])


def with_prompt(division: Division, tokens: int, seed: int) -> Batch:
    """The held-out blocks, each behind `tokens` tokens of the training text from a random place; these predict nothing.

    Raises SystemExit when the training text is shorter.
    """
    held_out, stream = division.held_out, division.training.inputs[:-1].flatten()  # the last block is filled up
    if len(stream) < tokens:
        raise SystemExit(f"The training text has {len(stream)} tokens, too few for a prompt of {tokens}.")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(stream) - tokens + 1, (len(held_out), 1), generator=generator)
    inputs = torch.cat((stream[starts + torch.arange(tokens)], held_out.inputs), 1)
    targets = torch.cat((torch.full((len(held_out), tokens), IGNORE_INDEX), held_out.targets), 1)
    return Batch(inputs=inputs, targets=targets)


def _blocks(inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> Batch:
    return Batch(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets))


def write(text: str, model: str, output: str, *, tokens: int) -> dict[str, int]:
    """Write the blocks of a text file; returns how many there are. model: a folder, for its tokenizer."""
    tokenizer = open_model_folder(Path(model)).tokenizer()

    def encoded(part: str) -> Sequence[int]:
        ids: list[int] = tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    written = Path(text).read_text(encoding="utf-8", errors="replace")
    division = divide(written, encoded, eos_id(tokenizer), tokens=tokens)
    np.savez(
        output,
        training_inputs=division.training.inputs.numpy(),
        training_targets=division.training.targets.numpy(),
        held_out_inputs=division.held_out.inputs.numpy(),
        held_out_targets=division.held_out.targets.numpy(),
    )
    return {
        "training_blocks": len(division.training),
        "training_tokens": division.training.tokens,
        "held_out_tokens": division.held_out.tokens,
    }
