"""What learning one person's words costs the model elsewhere, and what the safeguard against that costs.

python -m bench.harm --text FILE [--steps 300] [--seed 0] [--model DIR] [--quick]

A default job learns the text twice, with and without the base model's own samples in its steps, each time in a process
of its own. Ordinary text is the page that comes with the program, which no job trains on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import measured
from bench.common.child import command
from bench.common.harness import Limit, finish, parser, progress, start
from bench.common.shapes import learner, models_folder
from bench.learn.__main__ import divide, sample_text
from pocketllm.daemon.scheduling.night import MAX_STEPS

LIMITS = {
    "ordinary_rise": Limit(at_most=0.1),
    "instruct_drop": Limit(at_most=2, where_measurable=True),
    "gain_kept": Limit(at_least=0.95),
}
#: Of a run, before it counts as hung.
_TIMEOUT_SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    steps, batch = (2, 2) if options.quick else (options.steps, 8)
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        folder = options.model or learner(models, quick=options.quick)
        text = options.text or sample_text(Path(scratch))
        blocks = Path(scratch) / "blocks.npz"
        divide(text, folder, blocks)
        runs = {}
        work = {"folder": folder, "blocks": blocks, "steps": steps, "batch": batch, "seed": options.seed}
        for name in ("with", "without"):
            progress(f"{name} samples of the base model ...")
            run = command("bench.harm.run", "run", guarded=name == "with", **work)
            runs[name] = measured.report_of(run, f"The run {name} samples", timeout_seconds=_TIMEOUT_SECONDS)
    raw = {"text": text.name, "runs": runs}
    return finish("harm", [], values=values_of(runs), limits=LIMITS, raw=raw, options=options)


def values_of(runs: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """The bench's values, from both runs' reports."""
    before, after = runs["with"]["before"], runs["with"]["after"]
    won = {name: run["before"]["held_out"] - run["after"]["held_out"] for name, run in runs.items()}
    drop = before["instructions"] - after["instructions"] if "instructions" in before else None
    return {
        "nats_won": won["with"],
        "ordinary_rise": after["ordinary"] - before["ordinary"],
        "ordinary_rise_without": runs["without"]["after"]["ordinary"] - before["ordinary"],
        "instruct_drop": drop,
        "gain_kept": won["with"] / won["without"] if won["without"] else 0.0,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.harm", "What learning a text costs the model elsewhere.")
    made.add_argument("--text", type=Path, help="a writer's text (UTF-8); by default the sample notes")
    made.add_argument("--steps", type=int, default=MAX_STEPS)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--model", type=Path, help="a model folder stored as floats, in place of SmolLM2-135M")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
