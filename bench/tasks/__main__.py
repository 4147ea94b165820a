"""Prompted tasks in equal time: what is learned from labels?

python -m bench.tasks --data DIR [DIR ...] [--minutes 5] [--seeds 3] [--model DIR] [--resume] [--quick]

A folder is named as its task and holds its files: `sst2` GLUE's train.tsv and dev.tsv; `rte`, `cb` and `boolq`
SuperGLUE's train.jsonl and val.jsonl. A row becomes a prompt, as "<sentence> It was great" or "terrible". 512 examples
of each label are learned from, and what counts is the accuracy on the dev set after so many minutes, which each run has
for itself, in a process of its own; the `samples_seconds`, in which exact draws the base model's samples once a model,
come on top. With the first seed the rates are searched; with each further one all methods take a turn at their best
rate, until the best mean is one of all seeds. A value is that mean; the seeds draw the examples, too. Each task has
results of its own. bench.tasks.labels measures what the daemon learns from a few labels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.common import measured
from bench.common.child import command
from bench.common.harness import (
    Limit,
    as_by_itself,
    finish,
    keep,
    parser,
    progress,
    provenance,
    start,
    stored_runs,
    table,
)
from bench.common.rates import MAX_RATES, best_mean, grouped, search
from bench.common.shapes import learner, models_folder
from bench.tasks.datasets import name_of

#: Method -> the first learning rates of a peer's search.
_RATES: Mapping[str, tuple[float, ...]] = {
    "zero_shot": (),
    "probe": (),
    "textbook": (5e-4, 1e-3, 2e-3),
    "mezo": (),
    "exact": (),
    "autograd": (5e-4, 1e-3, 2e-3),
}
LIMITS = {
    "mezo": Limit(at_least=0.815),  # of SST-2: one standard error below what it had brought with one seed
    "exact_minus_autograd_errors": Limit(at_least=-1),
    "exact_over_probe": Limit(at_least=1),
    "mezo_over_textbook": Limit(at_least=1.001),  # a single sentence of the dev set more would do, a tie would not
}
_SLACK_SECONDS, _PATIENCE = 300.0, 3.0
_QUICK_ROWS = 16

#: Each says its method, rate (None where there is none to choose) and seed; the rest is its process's report.
Runs = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        folder = options.model or learner(models, quick=options.quick)
        folders = options.data or [_tiny_data(Path(scratch) / "sst2", quick=options.quick)]
        return max(run_task(data, folder, options) for data in folders)


def run_task(data: Path, folder: Path, options: argparse.Namespace) -> int:
    """Run all methods on one task. folder: of the model. Returns the exit code."""
    name = name_of(data)
    limits = LIMITS if name == "sst2" else {key: limit for key, limit in LIMITS.items() if key != "mezo"}
    seconds = 1.0 if options.quick else 60 * options.minutes
    raw = stored_runs(name, options, seconds=seconds)
    runs: Runs = raw["runs"]

    def accuracy(method: str, rate: float | None, seed: int) -> float:
        key = {"method": method, "rate": rate, "seed": seed}
        for run in runs:
            if key.items() <= run.items():
                return float(run["accuracy"])
        report = _run(method, rate, seed, folder, data, seconds, quick=options.quick)
        if report is None:
            return float("-inf")
        runs.append(key | provenance(options) | report)
        keep(name, values=values_of(runs), limits=limits, raw=raw, options=options)
        return float(report["accuracy"])

    for method, rates in _RATES.items():
        tried, most = (rates[:1], 1) if options.quick else (rates, MAX_RATES)
        if tried:
            search(tried, lambda rate, method=method: accuracy(method, rate, 0), max_rates=most)  # type: ignore[misc]
        else:
            accuracy(method, None, 0)
    count = -1
    while count != len(runs):  # until the best ones have all seeds
        count = len(runs)
        best = {method: found[0]["rate"] for method in _RATES if (found := _best_runs(runs, method))}
        for seed in range(1, options.seeds):
            for method, rate in best.items():
                if method != "zero_shot":  # which has nothing random
                    accuracy(method, rate, seed)
    rows = []
    for (method, rate), found in grouped(runs, "method", "rate").items():
        accuracies = [run["accuracy"] for run in found]
        rows.append(
            [
                method if rate is None else f"{method}, rate {rate:g}",
                f"{mean(accuracies):.4f}",
                f"{stdev(accuracies):.4f} ({len(found)})" if len(found) > 1 else "-",
                str(found[0].get("steps", "-")),
                f"{mean(run['total_seconds'] for run in found):.0f}",
            ]
        )
    columns = ["method", "accuracy on dev", "spread (seeds)", "steps", "in all, s"]
    shown = table(f"{name} after {seconds / 60:g} minutes", columns, rows)
    return finish(name, [shown], values=values_of(runs), limits=limits, raw=raw, options=options)


def values_of(runs: Runs) -> dict[str, float | None]:
    """The mean accuracy of each method at its best rate, and what follows."""
    values: dict[str, float | None] = {}
    for method in _RATES:
        best = _best_runs(runs, method)
        values[method] = mean(run["accuracy"] for run in best) if best else None
    exact, autograd = values["exact"], values["autograd"]
    values["exact_minus_autograd_errors"] = None
    if exact is not None and autograd is not None:
        rows = next(run["dev_rows"] for run in runs if run["method"] == "autograd")
        error = sqrt(autograd * (1 - autograd) / rows) or 1 / rows
        values["exact_minus_autograd_errors"] = (exact - autograd) / error
    values["exact_over_probe"] = _ratio(exact, values["probe"])
    values["mezo_over_textbook"] = _ratio(values["mezo"], values["textbook"])
    drawn = [run["samples_seconds"] for run in runs if run["method"] == "exact"]
    values["samples_seconds"] = mean(drawn) if drawn else None
    return values


def _best_runs(runs: Runs, method: str) -> Runs:
    """All seeds of the method's best rate, in the mean of its seeds."""
    own = [run for run in runs if run["method"] == method]
    return best_mean(grouped(own, "rate").values(), "accuracy")


def _run(
    method: str, rate: float | None, seed: int, folder: Path, data: Path, seconds: float, *, quick: bool
) -> dict[str, Any] | None:
    """What the run reports; None when it fails."""
    progress(f"{method}{'' if rate is None else f', rate {rate:g}'}, seed {seed} ...")
    work: dict[str, Any] = {"method": method, "folder": folder, "data": data, "seconds": seconds, "seed": seed}
    found = measured.run(
        command("bench.tasks.runs", "run", **work, rate=rate, dev_rows=_QUICK_ROWS if quick else None),
        timeout_seconds=_SLACK_SECONDS + _PATIENCE * seconds,
        environment=as_by_itself() if _RATES[method] else None,
    )
    if not found.completed:
        progress(f"  failed: {found.error or f'exit code {found.exit_code}'}")
        return None
    progress(f"  {found.report['accuracy']:.4f}")
    return {"total_seconds": found.seconds} | found.report


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _tiny_data(folder: Path, *, quick: bool) -> Path:
    """A few sentences in GLUE's form, to see whether the bench works."""
    if not quick:
        raise SystemExit("Name the folder of a task, as one `sst2` with GLUE's train.tsv and dev.tsv: --data DIR.")
    folder.mkdir()
    rows = [f"a {word} film\t{label}" for word, label in (("fine", 1), ("dull", 0), ("sweet", 1), ("loud", 0))]
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(["sentence\tlabel", *rows * 4, ""]), encoding="utf-8")
    return folder


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.tasks", "Prompted tasks in equal time, ours and the peers.")
    made.add_argument("--data", type=Path, nargs="+", help="folders of tasks: sst2, rte, cb, boolq")
    made.add_argument("--minutes", type=float, default=5, help="for each run")
    made.add_argument("--seeds", type=int, default=3, help="runs of a method at its best rate")
    made.add_argument("--resume", action="store_true", help="run what the raw results do not have yet")
    made.add_argument("--model", type=Path, help="a model folder stored as floats, in place of SmolLM2-135M")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
