"""Time of a step on SmolLM2-135M: ours, and everything that it is compared with, in turns.

python -m bench.step [--quick] [--rounds 7] [--batch 8] [--tokens 128] [--dtype bfloat16] [--models DIR]

A machine's speed moves by tens of per cent within minutes, so each round runs every contender, a ratio is taken within
a round, and what counts is the median over the rounds. Each contender is a process of its own, which sleeps while it is
not its turn; peers run as they do by themselves.
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
from bench.common.turns import Contender, in_turns

LIMITS = {
    "lora_over_two_forwards": Limit(at_most=0.95),
    "lora_over_floor": Limit(at_most=1.5),
    "lora_over_textbook": Limit(at_most=0.4),
    "lora_over_autograd": Limit(at_most=0.7),
    "full_over_two_forwards": Limit(at_most=1.25),
    "exact_over_floor": Limit(at_most=1.5),
    "exact_over_autograd": Limit(at_most=1.0),
    "exact_over_checkpointed": Limit(at_most=0.75),
    "load_s": Limit(at_most=2),
}
#: Contenders.
LORA, DIRECTIONS, FULL, EXACT = "MeZO", "MeZO, 15 directions", "MeZO, all parameters", "exact"
FORWARDS, TEXTBOOK, FLOOR = "two plain forwards", "textbook MeZO", "floor of one pass"
#: Of one kind: the fastest counts.
AUTOGRAD = ("autograd, peft", "autograd", "autograd, chunks")
CHECKPOINTED = ("autograd, peft, checkpointing", "autograd, chunks, checkpointing")
#: The same as the weights are stored, where ours compute in fp32.
STORED = "autograd, chunks, bfloat16"
#: MeZO's 15 directions share the loss at theta and four blocks; one direction has two sides, on eight blocks.
DIRECTIONS_BATCH, DIRECTIONS_POINTS = 4, 16
#: Value -> whose seconds are divided by whose (the fastest one's), and how often these count.
_RATIOS: Mapping[str, tuple[str, Sequence[str], float]] = {
    "lora_over_two_forwards": (LORA, [FORWARDS], 1),
    "lora_over_floor": (LORA, [FLOOR], 2),
    "lora_over_textbook": (LORA, [TEXTBOOK], 1),
    "lora_over_autograd": (LORA, AUTOGRAD, 1),
    # What the worker does by default beside what autograd does: its step is as long as several of one direction.
    "directions_over_autograd": (DIRECTIONS, AUTOGRAD, 1),
    "directions_over_floor": (DIRECTIONS, [FLOOR], DIRECTIONS_POINTS * DIRECTIONS_BATCH / 8),
    "full_over_two_forwards": (FULL, [FORWARDS], 1),
    # Forward, and the products of the errors: the weights themselves have no gradient.
    "exact_over_floor": (EXACT, [FLOOR], 2),
    "exact_over_autograd": (EXACT, (*AUTOGRAD, STORED), 1),
    "exact_over_checkpointed": (EXACT, CHECKPOINTED, 1),
    "exact_over_autograd_bfloat16": (EXACT, [STORED], 1),
}
_LOADS = 3


def contenders(folder: Path, dense: Path, *, batch: int, tokens: int) -> dict[str, Contender]:
    """All of them by name.

    folder: our model; dense: the same as bf16, for the peers and full-parameter training.
    """
    shared = max(1, batch * DIRECTIONS_BATCH // 8)

    def ours(mode: str, model: Path = folder, batch: int = batch) -> Contender:
        work = {"folder": model, "mode": mode, "batch": batch, "tokens": tokens}
        return command("bench.common.ours", "prepare_step", "--turns", **work), None

    def peer(module: str, **work: Any) -> Contender:
        work |= {"folder": dense, "batch": batch, "tokens": tokens}
        return command(module, "prepare_step", "--turns", **work), as_by_itself()

    peers, learners = "bench.common.peers", "bench.learn.peers"
    return {
        LORA: ours("lora"),
        DIRECTIONS: ours("directions", batch=shared),
        FULL: ours("full", dense),
        EXACT: ours("exact"),
        FORWARDS: peer(peers, peer="forward"),
        TEXTBOOK: peer(peers, peer="textbook"),
        AUTOGRAD[0]: peer(peers, peer="lora"),
        AUTOGRAD[1]: peer(learners),
        AUTOGRAD[2]: peer(learners, chunks=True),
        STORED: peer(learners, chunks=True, dtype="bfloat16"),
        CHECKPOINTED[0]: peer(peers, peer="lora", checkpointing=True),
        CHECKPOINTED[1]: peer(learners, chunks=True, checkpointing=True),
        FLOOR: peer("bench.step.floor"),
    }


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """The bench's ratios, each the median of the rounds' own; None where a contender failed."""
    found: dict[str, float | None] = {}
    for value, (over, candidates, times) in _RATIOS.items():
        under = min(
            (name for name in candidates if name in seconds), key=lambda name: median(seconds[name]), default=""
        )
        both = over in seconds and under in seconds
        found[value] = (
            median(a / (times * b) for a, b in zip(seconds[over], seconds[under], strict=True)) if both else None
        )
    return found


def load_seconds(folder: Path) -> float:
    """The median of a few loads, each in a fresh process, without the time for imports."""
    load = command("bench.common.ours", "load", folder=folder)
    return median(float(measured.report_of(load, f"Loading {folder.name}")["seconds"]) for _ in range(_LOADS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    shape = "llama-tiny" if options.quick else SMOLLM2
    batch, tokens, rounds = (2, 16, 1) if options.quick else (options.batch, options.tokens, options.rounds)
    with models_folder(options.models) as models:
        dense, folder = (ensure(models, shape, d, calibrated=shape == SMOLLM2) for d in ("bfloat16", options.dtype))
        progress(f"{shape}, {batch} x {tokens} tokens, {rounds} rounds ...")
        seconds = in_turns(contenders(folder, dense, batch=batch, tokens=tokens), rounds=rounds)
        values = {**ratios(seconds), "load_s": load_seconds(folder)}
    shown = table(
        f"A step of {batch} x {tokens} tokens on {shape} (ours: {options.dtype})",
        ["contender", "median, s", "least, s", "over two forwards"],
        [
            [name, f"{median(taken):.3f}", f"{min(taken):.3f}", f"{median(taken) / median(seconds[FORWARDS]):.2f}"]
            for name, taken in seconds.items()
        ],
    )
    return finish("step", [shown], values=values, limits=LIMITS, raw={"seconds": seconds}, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.step", "Time of a training step, ours and the peers', in turns.")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--batch", type=int, default=8, help="texts a step")
    made.add_argument("--tokens", type=int, default=128, help="tokens a text")
    made.add_argument("--dtype", default="bfloat16", help="how our model's weights are stored, for steps on an adapter")
    made.add_argument("--models", type=Path, help="keep the models in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
