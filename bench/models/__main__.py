"""What a step takes on the models that an owner may choose: ours, and transformers' autograd, in turns.

python -m bench.models [--quick] [--rounds 5] [--shapes NAME ...] [--gemma GGUF] [--models DIR]

A step is 8 x 64 tokens, exact gradients of an adapter; the peer is the leanest of bench.step, with the loss in chunks.
Models have random weights of the real shapes, in bf16, which time and memory do not depend on. With --gemma the file of
Gemma 3 270M is imported, and its loss on the sample notes is compared with transformers'.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import measured
from bench.common.child import command
from bench.common.harness import Limit, as_by_itself, finish, parser, progress, start, table
from bench.common.shapes import SMOLLM2, ensure, models_folder
from bench.common.turns import in_turns

GEMMA = "gemma-3-270m"
SHAPES = (SMOLLM2, "smollm2-360m", GEMMA, "qwen3-0.6b", "gemma-3-1b", "llama-3.2-1b")
LIMITS = {
    f"{GEMMA}/over_autograd": Limit(at_most=0.9),
    f"{GEMMA}/memory_over_autograd": Limit(at_most=0.5),
    f"{GEMMA}/head_over_products": Limit(at_most=1.25),
    "gemma_loss_difference": Limit(at_most=0.02),
    "predicted_error_worst": Limit(at_most=0.15),
}
_BATCH, _TOKENS, _QUICK_TOKENS = 8, 64, 16


def measure(shape: str, models: Path, *, rounds: int, tokens: int) -> dict[str, Any]:
    """One model: the memory of two steps in a fresh process each, and steps in turns."""
    folder = ensure(models, shape, "bfloat16")
    progress(f"{shape} ...")
    work: dict[str, Any] = {"folder": folder, "batch": _BATCH, "tokens": tokens}
    peer = {**work, "peer": "chunks", "cap_gb": 1000}
    ours = measured.run(command("bench.common.ours", "steps", mode="exact", count=2, **work))
    theirs = measured.run(command("bench.common.peers", "steps", count=2, **peer), environment=as_by_itself())
    seconds = in_turns(
        {
            "ours": (command("bench.common.ours", "prepare_step", "--turns", mode="exact", **work), None),
            "autograd": (command("bench.learn.peers", "prepare_step", "--turns", chunks=True, **work), as_by_itself()),
            "head": (command("bench.models.work", "prepare_head", "--turns", **work), None),
            "head's products": (command("bench.models.work", "prepare_head", "--turns", alone=True, **work), None),
        },
        rounds=rounds,
    )
    return {
        "shape": shape,
        "peak_bytes": ours.peak_rss_bytes,
        "predicted_bytes": ours.report["predicted_bytes"],
        "autograd_peak_bytes": theirs.peak_rss_bytes,
        "seconds": seconds,
    }


def values_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The values of all models."""
    values: dict[str, float | None] = {}
    for row in rows:
        for name, over, under in (
            ("over_autograd", "ours", "autograd"),
            ("head_over_products", "head", "head's products"),
        ):
            pairs = zip(row["seconds"].get(over, ()), row["seconds"].get(under, ()), strict=False)
            values[f"{row['shape']}/{name}"] = median([a / b for a, b in pairs] or [float("nan")])
        values[f"{row['shape']}/memory_over_autograd"] = row["peak_bytes"] / row["autograd_peak_bytes"]
        values[f"{row['shape']}/seconds"] = median(row["seconds"]["ours"])
        values[f"{row['shape']}/peak_mb"] = row["peak_bytes"] / 1e6
    values["predicted_error_worst"] = max(abs(row["predicted_bytes"] / row["peak_bytes"] - 1) for row in rows)
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    shapes = ("gemma-tiny",) if options.quick else options.shapes
    rounds, tokens = (1, _QUICK_TOKENS) if options.quick else (options.rounds, _TOKENS)
    raw: dict[str, Any] = {}
    with models_folder(options.models) as models:
        if options.gemma and not (models / f"{GEMMA}-bfloat16").exists():
            from pocketllm.engine.formats.importer import import_model

            import_model(str(options.gemma), models, name=f"{GEMMA}-bfloat16")
        rows = [measure(shape, models, rounds=rounds, tokens=tokens) for shape in shapes]
        values = values_of(rows)
        if options.gemma:
            folder = models / f"{GEMMA}-bfloat16"
            raw["losses"] = measured.report_of(command("bench.models.work", "losses", folder=folder), "The losses")
            values["gemma_loss_difference"] = abs(raw["losses"]["ours"] - raw["losses"]["transformers"])
    cells = [
        [
            row["shape"],
            *(f"{median(row['seconds'][name]):.2f}" for name in ("ours", "autograd")),
            *(f"{row[name] / 1e6:,.0f}" for name in ("peak_bytes", "predicted_bytes", "autograd_peak_bytes")),
        ]
        for row in rows
    ]
    steps: dict[str, Any] = {
        "columns": ["model", "a step, s", "autograd, s", "peak RSS, MB", "predicted, MB", "autograd, MB"],
        "rows": cells,
    }
    shown = table(f"A step of {_BATCH} x {tokens} tokens in bf16", **steps)
    limits = {name: limit for name, limit in LIMITS.items() if name in values}
    raw |= {"tables": {"steps": steps}, "models": rows}
    return finish("models", [shown], values=values, limits=limits, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.models", "A step on the models that an owner may choose, ours and autograd's, in turns.")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, help="only these")
    made.add_argument("--gemma", type=Path, help="Gemma 3 270M as a GGUF file, in place of random weights")
    made.add_argument("--models", type=Path, help="keep the models in this folder (8 GB), and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
