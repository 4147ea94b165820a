"""A guided run of a few steps on random text, for its memory: from the aim on, as the worker does it.

python -m bench.ours_guided --folder DIR --batch 8 --tokens 64 --steps 4

Prints one line of JSON. Where memory allows no more, the plan shortens the texts, as it does in the worker. How the
layers carry the stream is measured once a model, and not here: with random weights it would say nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import ours
from bench.child import write_line
from pocketllm.daemon.process_memory import give_back_free_memory
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.mezo import guided_run
from pocketllm.mezo.budget import HEAD_RANK, JobPlan
from pocketllm.mezo.loop import Row

_SEED = 0
#: Blocks of text: batches for the steps, and what is kept aside.
_BLOCKS = 48


@torch.inference_mode()
def run_steps(folder: Path, plan: JobPlan, *, steps: int) -> tuple[list[float], float]:
    """The seconds of each step, and the last one's loss."""
    model = ours.load_model(folder, plan.lanes)
    buckets = (ours.random_blocks(model, _BLOCKS, plan.block_tokens),)
    aimed = guided_run.begin(
        model, buckets, rank=plan.rank, head_rank=HEAD_RANK, seed=_SEED, rows_at_once=plan.rows_at_once
    )
    guided = guided_run.go_on(model, aimed.adapter)
    give_back_free_memory()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        guided_run.train(
            model,
            buckets,
            guided,
            seed=_SEED,
            steps=steps,
            batch=plan.batch,
            measure_every=steps,
            rows_at_once=plan.rows_at_once,
            folder=Path(scratch),
            cache_bytes=TrainingSettings().trunk_bytes,
            done=0,
            keep=rows.append,
            measure=lambda _step: None,
            remaining=lambda step: 1 - (step - 1) / steps,
            clock=time.monotonic,
        )
    return [row.seconds for row in rows], rows[-1].loss


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.ours_guided", description="Run guided steps here.")
    parser.add_argument("--folder", type=Path, required=True, help="a native model")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args(arguments)
    planned = ours.planned(options.folder, mode="guided", batch=options.batch, tokens=options.tokens)
    write_line(ours.report(planned, lambda: run_steps(options.folder, planned.plan, steps=options.steps)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
