"""What `python -m bench.memory` measures: a row a fresh process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.common.child import command
from bench.common.shapes import SMOLLM2

#: Values of `Row.method`.
OURS, EXACT = "MeZO, ours", "exact, ours"
FORWARD, TEXTBOOK, BACKPROP, ADAM = "two forwards", "MeZO, textbook", "LoRA, exact", "AdamW"
CHUNKS = "LoRA, exact, loss in chunks"
#: --quick: shape -> the tiny one that stands for it, and batch size -> a smaller one.
_TINY = {"opt-1.3b": "opt-tiny", "roberta-large": "roberta-tiny", "llama-2-7b": "llama-tiny", SMOLLM2: "llama-tiny"}
_TINY |= {"gemma-3-270m": "gemma-tiny", "qwen3-0.6b": "llama-tiny"}
_QUICK_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    key: str  #: for --rows, and in the values' names
    method: str
    shape: str  #: of bench.common.shapes
    dtype: str = "bfloat16"  #: of the weights
    mode: str = "full"  #: of bench.common.ours; a peer's "lora" or "full" is for the plot
    batch: int = 8
    tokens: int = 128
    steps: int = 1
    memory_mb: int | None = None  #: training.memory_bytes, if it is not the default
    micro_batch: int | None = None  #: texts at a time
    checkpointing: bool = False
    paper_gb: float | None = None  #: the paper's figure for the same task
    under_limit: bool = False  #: also under a hard limit of 1 GiB
    search_limit: bool = False  #: also look for the smallest limit

    @property
    def ours(self) -> bool:
        """Whether it is our engine's, of which a model folder is needed."""
        return self.method in (OURS, EXACT)

    @property
    def label(self) -> str:
        """For people."""
        extras = [f"micro-batch {self.micro_batch}"] if self.micro_batch else []
        extras += [f"within {self.memory_mb} MB"] if self.memory_mb else []
        extras += ["checkpointing"] if self.checkpointing else []
        mode = f" {self.mode}" if self.method == OURS else ""
        return ", ".join([f"{self.shape} {self.method}{mode} {self.dtype}", *extras])

    def command(self, folder: Path | None, cap_gb: float) -> list[str]:
        """The command line that runs it.

        folder: the model's, of ours and of what a peer cannot make from its shape. cap_gb: stops a peer.
        """
        work: dict[str, Any] = {"batch": self.batch, "tokens": self.tokens, "count": self.steps}
        if self.ours:
            memory_bytes = self.memory_mb and self.memory_mb * 10**6
            work |= {"mode": self.mode, "memory_bytes": memory_bytes}
            return command("bench.common.ours", "steps", folder=folder, **work)
        chunks = "int8" if self.dtype == "int8" else "chunks"
        peer = {FORWARD: "forward", TEXTBOOK: "textbook", BACKPROP: "lora", ADAM: "adam", CHUNKS: chunks}[self.method]
        work |= {"micro_batch": self.micro_batch, "checkpointing": self.checkpointing, "cap_gb": round(cap_gb, 3)}
        return command("bench.common.peers", "steps", peer=peer, shape=self.shape, folder=folder, **work)


def _ours(key: str, shape: str, **settings: Any) -> Row:
    row = Row(key=key, method=OURS, shape=shape, dtype="int8", mode="lora", steps=2)
    return replace(row, **settings)


def _exact(key: str, shape: str, **settings: Any) -> Row:
    return _ours(key, shape, method=EXACT, mode="exact", **settings)


#: Figures of arXiv 2407.01031, in GB: the only typed-in ones.
_PAPER_OPT, _PAPER_ROBERTA = 6.5, 4.0

#: With it SmolLM2 keeps the activations of a few layers.
_SMALL_MB = 110

OUR_ROWS: Sequence[Row] = (
    _ours("opt13_lora_bs8", "opt-1.3b", paper_gb=_PAPER_OPT, under_limit=True, search_limit=True),
    _ours("opt13_lora_bs64", "opt-1.3b", paper_gb=_PAPER_OPT, batch=64),
    _exact("opt13_exact_bs8", "opt-1.3b", paper_gb=_PAPER_OPT, under_limit=True),
    _exact("opt13_exact_bs64", "opt-1.3b", paper_gb=_PAPER_OPT, batch=64),
    _exact("smollm2_exact", SMOLLM2, dtype="bfloat16", tokens=64),
    _exact("smollm2_exact_small", SMOLLM2, dtype="bfloat16", tokens=64, memory_mb=_SMALL_MB),
    _exact("gemma270_exact", "gemma-3-270m", dtype="bfloat16", tokens=64),
    _exact("qwen06_exact", "qwen3-0.6b", dtype="bfloat16", tokens=64),
    # As the worker runs MeZO by default: 15 directions that share four blocks.
    _ours("smollm2_directions", SMOLLM2, dtype="bfloat16", mode="directions", batch=4, tokens=64),
    # All four batch sizes are in the plot.
    *(_ours(f"roberta_lora_bs{n}", "roberta-large", paper_gb=_PAPER_ROBERTA, batch=n) for n in (8, 16, 32, 64)),
    _ours("roberta_full", "roberta-large", paper_gb=_PAPER_ROBERTA, dtype="bfloat16", mode="full"),
    _ours("opt13_full", "opt-1.3b", paper_gb=_PAPER_OPT, dtype="bfloat16", mode="full"),
    _ours("llama7b", "llama-2-7b", dtype="int4", batch=2, tokens=64, under_limit=True),
)


def _peer(key: str, method: str, shape: str, **settings: Any) -> Row:
    return Row(key=key, method=method, shape=shape, **settings)


_LORA = {"mode": "lora", "checkpointing": True}
PEER_ROWS: Sequence[Row] = (
    _peer("opt13_forward_bs8", FORWARD, "opt-1.3b"),
    _peer("opt13_forward_bs64_micro8", FORWARD, "opt-1.3b", batch=64, micro_batch=8),
    _peer("opt13_textbook_bs8", TEXTBOOK, "opt-1.3b"),
    _peer("opt13_textbook_bs64_micro8", TEXTBOOK, "opt-1.3b", batch=64, micro_batch=8),
    _peer("opt13_backprop_bs8", BACKPROP, "opt-1.3b", **_LORA),
    _peer("opt13_backprop_bs64", BACKPROP, "opt-1.3b", batch=64, **_LORA),
    _peer("opt13_backprop_bs64_micro8", BACKPROP, "opt-1.3b", batch=64, micro_batch=8, **_LORA),
    _peer("opt13_int8_bs8", CHUNKS, "opt-1.3b", dtype="int8", steps=2, **_LORA),
    _peer("opt13_int8_bs64_micro8", CHUNKS, "opt-1.3b", dtype="int8", steps=2, batch=64, micro_batch=8, **_LORA),
    # Two steps: from the second on, the moments are there while activations are.
    _peer("opt13_adam_bs8", ADAM, "opt-1.3b", steps=2),
    _peer("opt13_adam_bs64", ADAM, "opt-1.3b", batch=64, steps=2),
    # The fastest of bench.step.
    _peer("smollm2_peer", CHUNKS, SMOLLM2, mode="lora", tokens=64, steps=2),
    # All four batch sizes are in the plot.
    *(
        row
        for n in (8, 16, 32, 64)
        for row in (
            _peer(f"roberta_adam_bs{n}", ADAM, "roberta-large", batch=n, steps=2),
            _peer(f"roberta_backprop_bs{n}", BACKPROP, "roberta-large", batch=n, **_LORA),
        )
    ),
)


def chosen(patterns: Sequence[str] | None, *, skip_peers: bool, quick: bool) -> list[Row]:
    """The rows to measure: those whose key matches one of the patterns ("opt13_*"), by default all.

    Raises ValueError naming a pattern that matches none.
    """
    rows = [*OUR_ROWS, *(() if skip_peers else PEER_ROWS)]
    for pattern in patterns or ():
        if not any(fnmatchcase(row.key, pattern) for row in rows):
            raise ValueError(f"no row is called {pattern!r}; there are {', '.join(row.key for row in rows)}")
    if patterns is not None:
        rows = [row for row in rows if any(fnmatchcase(row.key, pattern) for pattern in patterns)]
    return [_shrunk(row) for row in rows] if quick else rows


def _shrunk(row: Row) -> Row:
    smaller: dict[str, Any] = {"shape": _TINY[row.shape], "batch": max(2, row.batch // 4), "tokens": _QUICK_TOKENS}
    return replace(row, micro_batch=2 if row.micro_batch else None, memory_mb=None, paper_gb=None, **smaller)
