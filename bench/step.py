"""Time of a step on SmolLM2-135M: ours, and everything that it is compared with, in one process and in turns.

python -m bench.step [--quick] [--rounds 7] [--batch 8] [--tokens 128] [--dtype bfloat16] [--models DIR]

A machine's speed moves by tens of per cent within minutes, so each round runs every contender, a ratio is taken within
a round, and what counts is the median over the rounds. A contender takes two steps in its turn, of which the second is
timed: in training a step follows a step, while the first one here has to fetch memory that another contender gave back.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

# Before our engine puts a light stand-in in the compiler's place (mezo/lean.py), and because peft looks for the other:
# the peers get the libraries as their users have them.
import torch._dynamo
import torch.distributed.tensor

from bench import measured, ours, peers
from bench.harness import Limit, finish, parser, progress, start, table
from bench.shapes import SMOLLM2, ensure, models_folder

LIMITS = {
    "lora_over_two_forwards": Limit(at_most=0.95),
    "lora_over_floor": Limit(at_most=1.5),
    "lora_over_textbook": Limit(at_most=0.4),
    "lora_over_backprop": Limit(at_most=0.7),
    "full_over_two_forwards": Limit(at_most=1.25),
    "load_s": Limit(at_most=2),
}
#: Contenders.
LORA, FULL, FORWARDS, TEXTBOOK, BACKPROP, FLOOR = (
    "our LoRA step",
    "our full-parameter step",
    "two plain forwards",
    "textbook MeZO step",
    "exact LoRA step",
    "arithmetic floor",
)
#: Value -> whose seconds are divided by whose.
_RATIOS = {
    "lora_over_two_forwards": (LORA, FORWARDS),
    "lora_over_floor": (LORA, FLOOR),
    "lora_over_textbook": (LORA, TEXTBOOK),
    "lora_over_backprop": (LORA, BACKPROP),
    "full_over_two_forwards": (FULL, FORWARDS),
}
_CAPTION = (
    "Medians of {rounds} rounds, in each of which every contender takes two steps and the second is timed, in one "
    "process with the memory settings of the daemon's children (MALLOC_*, OMP_WAIT_POLICY), which suit peers too. "
    "Peers: transformers in bf16, the loss from labels; exact LoRA: peft, rank 8 on all linear layers in bf16, without "
    "checkpointing. The floor: the matrix products of a step's linear maps, both signs, at the best rate that a "
    "product of these sizes reached in the round."
)
_LOADS = 3
_GEMM_REPEATS = 3
#: Signs of a probe.
_SIDES = 2


class Floor:
    """The least time that a step's matrix products can take here, measured anew in each round."""

    def __init__(self, model: Any, *, batch: int, tokens: int) -> None:
        matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self.rows = _SIDES * batch * tokens
        self.flops = 2 * self.rows * sum(matrix.numel() for matrix in matrices)
        self._shapes = sorted({tuple(matrix.shape) for matrix in matrices})

    def seconds(self) -> float:
        """Measure the rate and return the floor."""
        rate = max(self._rate(out, width, dtype) for out, width in self._shapes for dtype in _DTYPES)
        return self.flops / rate

    @torch.inference_mode()
    def _rate(self, out: int, width: int, dtype: torch.dtype) -> float:
        # Random numbers: with constants, whose bits hardly change, a processor draws less power and runs faster.
        x, w = torch.randn(self.rows, width).to(dtype), torch.randn(out, width).to(dtype)
        y = torch.empty(self.rows, out, dtype=dtype)
        best = min(_timed(partial(torch.mm, x, w.t(), out=y)) for _ in range(_GEMM_REPEATS))
        return 2 * self.rows * out * width / best


#: Where bf16 is emulated, fp32 is the faster one, and the rate that counts.
_DTYPES = (torch.bfloat16, torch.float32)


def contenders(folder: Path, dense: Path, *, batch: int, tokens: int) -> dict[str, Callable[[], float]]:
    """Name -> what does one step and returns its seconds.

    folder: our model; dense: the same as bf16, for the peers and full-parameter training. They share nothing.
    """
    work = {"batch": batch, "tokens": tokens}
    steps: dict[str, Callable[[], object]] = {
        LORA: ours.prepare_step(folder, mode="lora", **work),
        FULL: ours.prepare_step(dense, mode="full", **work),
    }
    for name, peer in ((FORWARDS, "forward"), (TEXTBOOK, "textbook"), (BACKPROP, "lora")):
        model = peers.build(dense)
        steps[name] = peers.PEERS[peer](model, peers.random_batch(model, **work), batch)
    floor = Floor(peers.build(dense), **work)
    return {name: partial(_timed, step) for name, step in steps.items()} | {FLOOR: floor.seconds}


def in_turns(runs: dict[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender, one a round; a round before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            run()
            taken = run()
            progress(f"  {'warm-up' if number == 0 else f'round {number}'}: {name}, {taken:.3f} s")
            if number:
                seconds[name].append(taken)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The bench's ratios: each the median of the rounds' own ratios."""
    return {
        value: median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))
        for value, (over, under) in _RATIOS.items()
    }


def load_seconds(folder: Path) -> float:
    """The median of a few loads, each in a fresh process, without the time for imports."""
    command = [sys.executable, "-m", "bench.ours", "load", "--folder", str(folder)]
    loads = [measured.run(command) for _ in range(_LOADS)]
    for load in loads:
        if not load.completed:
            raise SystemExit(f"Loading {folder.name} failed: {load.error}")
    return median(float(load.report["seconds"]) for load in loads)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    shape = "llama-tiny" if options.quick else SMOLLM2
    batch, tokens, rounds = (2, 16, 1) if options.quick else (options.batch, options.tokens, options.rounds)
    with models_folder(options.models) as models:
        dense, folder = ensure(models, shape, "bfloat16"), ensure(models, shape, options.dtype)
        progress(f"{shape}, {batch} x {tokens} tokens, {rounds} rounds ...")
        seconds = in_turns(contenders(folder, dense, batch=batch, tokens=tokens), rounds=rounds)
        values: dict[str, float | None] = {**ratios(seconds), "load_s": load_seconds(folder)}
    shown = table(
        f"A step of {batch} x {tokens} tokens on {shape} (ours: {options.dtype})",
        ["contender", "median, s", "least, s", "over two forwards"],
        [
            [name, f"{median(taken):.3f}", f"{min(taken):.3f}", f"{median(taken) / median(seconds[FORWARDS]):.2f}"]
            for name, taken in seconds.items()
        ],
        caption=_CAPTION.format(rounds=rounds),
    )
    return finish("step", [shown], values=values, limits=LIMITS, raw={"seconds": seconds}, options=options)


def _timed(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.step", "Time of a training step, ours and the peers', in turns.")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--batch", type=int, default=8, help="texts a step")
    made.add_argument("--tokens", type=int, default=128, help="tokens a text")
    made.add_argument("--dtype", default="bfloat16", help="how our model's weights are stored, for the LoRA step")
    made.add_argument("--models", type=Path, help="keep the models in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
