"""Whether five jobs of 60 steps, one a night, win as much as one of 300.

python -m bench.split --text FILE [FILE ...] [--seeds N] [--resume]

Each file is a writer's; its last tenth is held out. A job trains as the worker's does by default; the next one starts
from its adapter, with another seed. What is measured depends on steps, not on seconds, so another load on the machine
changes nothing.

split: what the five jobs win, over what the long one wins; of the writer for whom it is worst. full_rate: the same with
the full learning rate in each job, where the worker anneals its peak over the chain.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import mean

from bench.common.harness import Limit, finish, start
from bench.learn.jobs import Run, options_of, runs_of, won

LIMITS = {"split": Limit(at_least=0.95)}
_CHAIN, _QUICK_CHAIN = (60,) * 5, (3, 3)


def values_of(runs: Sequence[Run], options: argparse.Namespace) -> dict[str, float | None]:
    """The values of all runs so far."""
    values: dict[str, float | None] = {}
    for name, annealed in (("split", True), ("full_rate", False)):
        of_writers = {}
        for writer in dict.fromkeys(run["writer"] for run in runs):
            own = [run for run in runs if run["writer"] == writer]
            chains = [won(run) for run in own if len(run["jobs"]) > 1 and run["annealed"] is annealed]
            long = [won(run) for run in own if len(run["jobs"]) == 1]
            of_writers[f"{name}/{writer}"] = mean(chains) / mean(long)
        values |= {name: min(of_writers.values())} | of_writers
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = options_of("bench.split", "Five short jobs, one a night, against a long one.").parse_args(arguments)
    chain = _QUICK_CHAIN if options.quick else _CHAIN
    options.seeds = 1 if options.quick else options.seeds
    with runs_of("split", options) as runs:
        for seed in range(options.seeds):
            for writer in runs.writers:
                for jobs, annealed in ((chain, True), (chain, False), ((sum(chain),), True)):
                    text = writer.division.training
                    runs.run(writer, text, writer.words, jobs, seed, annealed=annealed)
    values = values_of(runs.all, options)
    return finish("split", [runs.table()], values=values, limits=LIMITS, raw=runs.raw, options=options)


if __name__ == "__main__":
    sys.exit(start(main))
