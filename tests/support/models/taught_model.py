"""A small model that has really been taught something, so that bad text can make it worse."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from pocketllm.engine.data.batches import IGNORE_INDEX, pack
from tests.support.models.tiny_models import byte_tokenizer, tiny_llama_folder

#: Enough that its loss halves, in some ten seconds.
STEPS, ROWS, LENGTH, RATE = 300, 24, 64, 3e-3


@cache
def taught_folder(root: Path) -> Path:
    """The Hugging Face folder of a small Llama that was taught the first half of the sample notes, by backpropagation.

    Written once for each `root`; tests do not change it.
    """
    path = tiny_llama_folder(root / "taught", layers=3, hidden=64)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # tiny_llama_folder's are large on purpose, which does not train well
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.05, generator=generator)
    tokenizer = byte_tokenizer()
    notes = sample_notes()
    ids = [tokenizer(note)["input_ids"] for note in notes[: len(notes) // 2]]
    blocks = pack(ids, length=LENGTH, eos=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(STEPS):
        rows = torch.randint(len(blocks), (ROWS,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        logits = model(input_ids=blocks.inputs[rows]).logits
        loss: Any = F.cross_entropy(logits.transpose(1, 2), blocks.targets[rows], ignore_index=IGNORE_INDEX)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    return path


def sample_notes() -> list[str]:
    """The notes that come with the program: a hundred and more, of some fifty words each."""
    text = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8")
    return [" ".join(note.split()) for note in text.split("\n\n") if note.strip()]


def unknown_notes() -> list[str]:
    """The notes that it has not been taught."""
    notes = sample_notes()
    return notes[len(notes) // 2 :]
