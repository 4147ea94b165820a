"""What a text is worth, in passes over it.

python -m bench.passes --text FILE [FILE ...] [--words N ...] [--steps N ...] [--seeds N] [--resume]

Each file is a writer's. A job trains as the worker's does by default, on the last words before the last tenth of the
text, which is held out. What is measured depends on steps, not on seconds, so another load on the machine changes
nothing.

chosen: what the steps win that the worker chooses (scheduling/night.py), over what 300 steps win; chosen_worst: of the
text for which it is least. chosen/WRITER/WORDS and STEPS/WRITER/WORDS: the same of each text, and of other numbers of
steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import mean

from bench.common.harness import Limit, finish, start
from bench.learn.jobs import Run, Runs, options_of, runs_of, steps_a_pass, won
from pocketllm.daemon.scheduling.night import MAX_STEPS, worth

LIMITS = {"chosen": Limit(at_least=0.98)}
#: The most passes over a text besides the long job's.
_MAX_PASSES = 14


def run_all(runs: Runs) -> None:
    """Run jobs of several lengths on parts of each text."""
    options = runs.options
    for seed in range(options.seeds):
        for words in options.words:
            for writer in runs.writers:
                if words <= writer.words:
                    text = writer.last(words)
                    most = _MAX_PASSES * steps_a_pass(text)
                    chosen = min(options.long, worth(steps_a_pass(text), "exact"))
                    shorter = {steps for steps in options.steps if steps <= most}
                    for steps in (options.long, *sorted({chosen, *shorter} - {options.long})):
                        runs.run(writer, text, words, (steps,), seed)


def values_of(runs: Sequence[Run], options: argparse.Namespace) -> dict[str, float | None]:
    """The values of all runs so far."""
    chosen: list[float] = []
    values: dict[str, float | None] = {}
    for writer, words in dict.fromkeys((run["writer"], run["words"]) for run in runs):
        own = [run for run in runs if (run["writer"], run["words"]) == (writer, words)]
        wins = {
            steps: mean(won(run) for run in own if run["jobs"] == [steps])
            for (steps,) in {tuple(run["jobs"]) for run in own}
        }
        shares = {steps: wins[steps] / wins[options.long] for steps in sorted(wins)}
        chosen.append(shares[min(options.long, worth(own[0]["steps_a_pass"], "exact"))])
        values[f"chosen/{writer}/{words}"] = chosen[-1]
        values |= {f"{steps}/{writer}/{words}": share for steps, share in shares.items() if steps != options.long}
    return {"chosen": mean(chosen), "chosen_worst": min(chosen)} | values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    made = options_of("bench.passes", "What a text is worth, in passes over it.")
    made.add_argument("--words", type=int, nargs="+", default=[1000, 4000, 16_000], help="words of a text to learn")
    made.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80, 160], help="steps of the shorter jobs")
    options = made.parse_args(arguments)
    options.long = MAX_STEPS
    if options.quick:
        options.long, options.words, options.steps, options.seeds = 6, [1000], [2], 1
    with runs_of("passes", options) as runs:
        run_all(runs)
    values = values_of(runs.all, options)
    return finish("passes", [runs.table()], values=values, limits=LIMITS, raw=runs.raw, options=options)


if __name__ == "__main__":
    sys.exit(start(main))
