"""What the bench's own processes run: the head's part of a step, and the losses of the sample notes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.common.ours import load_model
from bench.common.peers import build
from pocketllm.backprop.output_error import output_error
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.formats.tokenizer import lean_tokenizer


def prepare_head(folder: str, *, batch: int, tokens: int, alone: bool = False) -> Any:
    """Return what does the head's part of a step: the loss and its gradient; or the two products in it alone."""
    model, numbers = load_model(Path(folder)), torch.Generator().manual_seed(0)
    head, rows = model.head.at(None), batch * tokens
    hidden = torch.randn(rows, model.head.weight.shape[1], generator=numbers).to(model.context.dtype)
    targets = torch.randint(0, head.vocabulary, (rows,), generator=numbers)
    columns = min(2048, head.vocabulary)
    logits = torch.empty(rows, columns, dtype=hidden.dtype)
    total = torch.zeros(hidden.shape, dtype=hidden.dtype)

    @torch.no_grad()
    def products() -> None:
        for first in range(0, head.vocabulary - columns + 1, columns):
            some = head.rows(first, first + columns)
            torch.mm(hidden, some.t(), out=logits)
            torch.mm(logits, some, out=total)

    return products if alone else lambda: output_error(hidden, head, targets)


@torch.no_grad()
def losses(folder: str) -> dict[str, float]:
    """Nats per token of the sample notes, each from its beginning: by our model, and by transformers in its dtype."""
    model, peer = load_model(Path(folder)), build(Path(folder))
    theirs_encode, encode = model.folder.tokenizer(), lean_tokenizer(model.folder)
    notes = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8").split("\n\n")
    ours = theirs = 0.0
    tokens = 0
    for note in filter(str.strip, notes):
        ids = torch.tensor([encode(note)["input_ids"]])
        if ids.shape[1] < 2:
            continue
        ours += model.block_losses(Batch(inputs=ids[:, :-1], targets=ids[:, 1:]))[0] * (ids.shape[1] - 1)
        expected = theirs_encode(note, return_tensors="pt").input_ids
        logits = peer(expected).logits.float()[0, :-1]
        theirs += float(F.cross_entropy(logits, expected[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    return {"ours": ours / tokens, "transformers": theirs / tokens}
