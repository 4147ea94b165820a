"""What a text is worth, in passes over it; and whether several short jobs win as much as a long one.

python -m bench.passes --text FILE [FILE ...] [--split] [--words N ...] [--steps N ...] [--seeds N] [--resume]

Each file is a writer's. A job trains as the worker's does by default, on the last words before the last tenth of the
text, which is held out; in a chain the next job starts from its adapter, with another seed. What is measured depends
on steps, not on seconds, so another load on the machine changes nothing.

passes_98: the passes over the text that win 98 % of what 300 steps win; of the text that wants most.
split, with --split, which has results of its own: what five jobs of 60 steps win one after the other on a whole text,
over what one of 300 steps wins; of the writer for whom it is worst. split_full_rate: the same with the full rate in
each job, where the worker anneals the rate over the chain.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from bench.common.harness import Limit, finish, keep, parser, progress, provenance, start, stored_runs, table
from bench.common.ours import load_model, planned, rehearsal_of, rehearsed
from bench.common.shapes import learner, models_folder
from bench.learn import text as learn_text
from bench.learn.__main__ import divide, sample_text
from bench.learn.ours import Scratch
from pocketllm.backprop.method import Exact, ExactPlan, fresh_adapter, rate_for
from pocketllm.daemon.scheduling.night import chain_share
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training import trainer
from pocketllm.daemon.training.run import pass_size
from pocketllm.daemon.training.validation_split import split, validation_interval
from pocketllm.engine.data.batches import Batch, shuffled
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.memory_model import exact_passes
from pocketllm.engine.planning.shapes import read_shapes

LIMITS = {"split": Limit(at_least=0.95)}
_TOKENS, _BATCH = 64, 8
#: The steps of the job that all else is compared with; and of the jobs of a chain.
_LONG, _CHAIN = 300, (60,) * 5
_QUICK_LONG, _QUICK_CHAIN = 6, (3, 3)
#: The most passes over a text besides the long job's.
_MAX_PASSES = 14
#: What is to be won, as a share of what the long job wins.
_ENOUGH = 0.98
#: The value of chains without annealing.
_FULL_RATE = "split_full_rate"

#: A chain of jobs, what it was run on, and the losses in between.
Run = dict[str, Any]


class Learner:
    """The model, and the base model's samples."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(folder)
        self.samples = rehearsal_of(self.model)
        self.plan = planned(folder, mode="exact", batch=_BATCH, tokens=_TOKENS).plan
        self.points = exact_passes(read_shapes(self.model.folder), self.plan)

    @torch.no_grad()
    def chain(
        self, text: Batch, held_out: Batch, jobs: Sequence[int], *, seed: int, annealed: bool = True
    ) -> dict[str, Any]:
        """The held-out loss at first and after each job, and each job's best step. annealed: over the chain, too."""
        adapter: Adapter | None = None
        losses, best = [self._loss(None, held_out)], []
        for number, steps in enumerate(jobs):
            share = chain_share(sum(jobs[:number]), sum(jobs)) if annealed else 1.0
            adapter, at = self._job(text, adapter, steps, seed=seed + 1000 * number, share=share)
            losses.append(self._loss(adapter, held_out))
            best.append(at)
        return {"losses": losses, "best_steps": best}

    def _job(self, text: Batch, parent: Adapter | None, steps: int, *, seed: int, share: float) -> tuple[Adapter, int]:
        training, validation = split((text,))
        tokens = sum(bucket.inputs.numel() for bucket in training)
        adapter = fresh_adapter(self.model, rank=self.plan.rank, seed=seed) if parent is None else parent
        begun = {path: (a.clone(), adapter.b[path].clone()) for path, a in adapter.a.items()}

        def to_start() -> None:
            for path, (a, b) in begun.items():
                adapter.a[path].copy_(a)
                adapter.b[path].copy_(b)

        self.model.set_parameters(adapter)
        count = rehearsed(self.plan)
        rate = share * rate_for(TrainingSettings().rate, tokens)
        method = Exact(
            self.model,
            adapter,
            ExactPlan(seed=seed, rate=rate, samples_weight=count / self.plan.batch),
            pass_size(self.plan),
            to_start=to_start,
            samples=shuffled((self.samples,), size=count, seed=seed),
        )
        with tempfile.TemporaryDirectory() as folder:
            stopping = trainer.train(
                method,
                Scratch(Path(folder), lambda: None),
                trainer.Run(
                    steps=steps,
                    batch=shuffled(training, size=self.plan.batch - count, seed=seed),
                    remaining=lambda step: 1 - (step - 1) / steps,
                    validation_loss=lambda: self.model.mean_loss(validation),
                    validated_on="",
                    check_every=validation_interval(training, validation, batch=self.plan.batch, points=self.points),
                    measure=lambda _step: None,
                    measure_every=steps,
                    clock=lambda: 0.0,
                ),
            )
        return adapter, stopping.best_step

    def _loss(self, adapter: Adapter | None, held_out: Batch) -> float:
        self.model.set_parameters(adapter)
        return self.model.mean_loss([held_out])


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A writer's text, in blocks."""

    name: str
    words: int
    division: learn_text.Division

    def last(self, words: int) -> Batch:
        """The last blocks of the training text, of about this number of words."""
        blocks = len(self.division.training)
        return self.division.training[slice(blocks - round(blocks * words / self.words), blocks)]


def steps_a_pass(text: Batch) -> int:
    """The steps of a pass over a text: one of a step's blocks is rehearsal."""
    return ceil(len(text) / (_BATCH - 1))


#: Runs a chain of jobs: writer, text, words, steps of each job, seed, annealed.
Runner = Callable[[Writer, Batch, int, Sequence[int], int, bool], None]


def run_lengths(writers: Sequence[Writer], options: argparse.Namespace, run: Runner) -> None:
    """Run jobs of several lengths on parts of each text."""
    for seed in range(options.seeds):
        for words in options.words:
            for writer in writers:
                if words <= writer.words:
                    text = writer.last(words)
                    most = _MAX_PASSES * steps_a_pass(text)
                    for steps in (options.long, *(steps for steps in options.steps if steps <= most)):
                        run(writer, text, words, (steps,), seed, True)


def run_chains(writers: Sequence[Writer], options: argparse.Namespace, run: Runner) -> None:
    """Run chains of short jobs, and long jobs, on the whole texts."""
    for seed in range(options.seeds):
        for writer in writers:
            for jobs, annealed in ((options.chain, True), (options.chain, False), ((sum(options.chain),), True)):
                run(writer, writer.division.training, writer.words, jobs, seed, annealed)


def values_of(runs: Sequence[Run], options: argparse.Namespace) -> dict[str, float | None]:
    """The values of all runs so far."""
    values = _split(runs, options) if options.split else _passes(runs, options)
    found = [value for value in values.values() if value is not None]
    if options.split:
        least = {name: [values[key] for key in values if key.startswith(f"{name}/")] for name in ("split", _FULL_RATE)}
        return {name: min((x for x in some if x is not None), default=None) for name, some in least.items()} | values
    return {"passes_98": max(found, default=None)} | values


def _passes(runs: Sequence[Run], options: argparse.Namespace) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for writer, words in dict.fromkeys((run["writer"], run["words"]) for run in runs):
        own = [run for run in runs if (run["writer"], run["words"]) == (writer, words)]
        lengths = sorted({run["jobs"][0] for run in own})
        won = {steps: mean(_won(run) for run in own if run["jobs"] == [steps]) for steps in lengths}
        enough = _ENOUGH * won.get(options.long, 0.0)
        reached = next((steps for steps in lengths if won[steps] >= enough), options.long)
        values[f"passes_98/{writer}/{words}"] = reached / own[0]["steps_a_pass"]
    return values


def _split(runs: Sequence[Run], options: argparse.Namespace) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for writer in dict.fromkeys(run["writer"] for run in runs):
        won: dict[tuple[int, bool], list[float]] = {}
        for run in runs:
            if run["writer"] == writer:
                won.setdefault((len(run["jobs"]), run["annealed"]), []).append(_won(run))
        for name, annealed in (("split", True), (_FULL_RATE, False)):
            chains, long = won.get((len(options.chain), annealed)), won.get((1, True))
            values[f"{name}/{writer}"] = mean(chains) / mean(long) if chains and long else None
    return values


def _won(run: Run) -> float:
    return float(run["losses"][0] - run["losses"][-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    name, limits = ("split", LIMITS) if options.split else ("passes", {})
    raw = (stored_runs(name, options, seconds=0.0) if options.resume else None) or {"seconds": 0.0, "runs": []}
    runs: list[Run] = raw["runs"]
    with suppress(KeyboardInterrupt), models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        folder = learner(models, quick=options.quick)
        writers = [_writer(text, folder, Path(scratch)) for text in options.text or [sample_text(Path(scratch))]]
        learns = Learner(folder)

        def run(writer: Writer, text: Batch, words: int, jobs: Sequence[int], seed: int, annealed: bool) -> None:
            key: Run = {"writer": writer.name, "words": words, "jobs": list(jobs), "seed": seed, "annealed": annealed}
            if any(key.items() <= run.items() for run in runs):
                return
            found = learns.chain(text, writer.division.held_out, jobs, seed=seed, annealed=annealed)
            runs.append(key | {"steps_a_pass": steps_a_pass(text)} | provenance(options) | found)
            losses = ", ".join(f"{loss:.3f}" for loss in found["losses"])
            progress(f"{key}: {losses}; best steps {found['best_steps']}")
            keep(name, values=values_of(runs, options), limits=limits, raw=raw, options=options)

        (run_chains if options.split else run_lengths)(writers, options, run)
    return finish(name, [_table(runs)], values=values_of(runs, options), limits=limits, raw=raw, options=options)


def _table(runs: Sequence[Run]) -> Any:
    """A row for each text and chain."""
    rows = []
    keys = [(run["writer"], run["words"], tuple(run["jobs"]), run["annealed"]) for run in runs]
    for writer, words, jobs, annealed in dict.fromkeys(keys):
        same = [run for run, key in zip(runs, keys, strict=True) if key == (writer, words, jobs, annealed)]
        passes = sum(jobs) / same[0]["steps_a_pass"]
        steps = " + ".join(map(str, jobs)) + ("" if annealed else ", full rate")
        rows.append([writer, str(words), steps, f"{passes:.1f}", f"{mean(map(_won, same)):.3f}", str(len(same))])
    return table("What jobs win", ["writer", "words", "steps", "passes", "won, nats", "seeds"], rows)


def _writer(text: Path, folder: Path, scratch: Path) -> Writer:
    blocks = scratch / f"{text.stem}.npz"
    divide(text, folder, blocks)
    words = len(text.read_text(encoding="utf-8", errors="replace").split())
    return Writer(name=text.stem, words=words * 9 // 10, division=learn_text.load(str(blocks)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.passes", "What a text is worth, in passes; and chains of short jobs against a long one.")
    made.add_argument("--split", action="store_true", help="chains of short jobs against a long one")
    made.add_argument("--text", type=Path, nargs="+", help="a writer's text each (UTF-8); by default the sample notes")
    made.add_argument("--words", type=int, nargs="+", default=[1000, 4000, 16_000], help="words of a text to learn")
    made.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80, 160], help="steps of the shorter jobs")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--resume", action="store_true", help="run what the results file does not have yet")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    made.set_defaults(long=_LONG, chain=_CHAIN)
    options = made.parse_args(arguments)
    if options.quick:
        options.long, options.chain = _QUICK_LONG, _QUICK_CHAIN
        options.words, options.steps, options.seeds = [1000], [2], 1
    return options


if __name__ == "__main__":
    sys.exit(start(main))
