"""Jobs as the worker's by default, one after the other on writers' texts: what bench.passes and bench.split run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from bench.common.harness import keep, parser, progress, provenance, stored_runs, table
from bench.common.ours import exact_method, load_model, planned, rehearsal_of, rehearsed
from bench.common.shapes import learner, models_folder
from bench.learn import text as learn_text
from bench.learn.__main__ import divide, sample_text
from bench.learn.ours import teach
from pocketllm.backprop.method import fresh_adapter, rate_for
from pocketllm.daemon.scheduling.night import chain_share
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training.validation_split import split
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.memory_model import exact_passes
from pocketllm.engine.planning.shapes import read_shapes

_TOKENS, _BATCH = 64, 8

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
    def chain(self, text: Batch, held_out: Batch, jobs: Sequence[int], *, seed: int, annealed: bool) -> dict[str, Any]:
        """The held-out loss at first and after each job, and each job's best step. annealed: over the chain, too."""
        adapter = fresh_adapter(self.model, rank=self.plan.rank, seed=seed)
        losses, best = [self._loss(None, held_out)], []
        for number, steps in enumerate(jobs):
            share = chain_share(sum(jobs[:number]), sum(jobs)) if annealed else 1.0
            best.append(self._job(text, adapter, steps, seed=seed + 1000 * number, share=share))
            losses.append(self._loss(adapter, held_out))
        return {"losses": losses, "best_steps": best}

    def _job(self, text: Batch, adapter: Adapter, steps: int, *, seed: int, share: float) -> int:
        training, _ = split((text,))
        rate = share * rate_for(TrainingSettings().rate, sum(bucket.inputs.numel() for bucket in training))
        method = exact_method(self.model, self.plan, seed=seed, samples=self.samples, adapter=adapter, rate=rate)
        batch = self.plan.batch - rehearsed(self.plan)
        taught = teach(self.model, method, (text,), seed=seed, batch=batch, points=self.points, steps=steps)
        return taught.stopping.best_step

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
    """The steps of a pass over what is not validated on: one of a step's blocks is rehearsal."""
    training, _ = split((text,))
    return sum(ceil(len(bucket) / (_BATCH - 1)) for bucket in training)


def won(run: Run) -> float:
    """Nats per token."""
    return float(run["losses"][0] - run["losses"][-1])


def options_of(module: str, description: str) -> argparse.ArgumentParser:
    """The options of both benches."""
    made = parser(module, description)
    made.add_argument("--text", type=Path, nargs="+", help="a writer's text each (UTF-8); by default the sample notes")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--resume", action="store_true", help="run what the raw results do not have yet")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made


class Runs:
    """The runs of a bench so far, each kept in its results file as soon as it has ended."""

    def __init__(self, name: str, options: argparse.Namespace, writers: Sequence[Writer], learner: Learner) -> None:
        self.options, self.writers = options, writers
        self._name, self._learner = name, learner
        self.raw = stored_runs(name, options, seconds=0.0)
        self.all: list[Run] = self.raw["runs"]

    def run(self, writer: Writer, text: Batch, words: int, jobs: Sequence[int], seed: int, **how: Any) -> None:
        """Run a chain, unless it has been run. how: see `Learner.chain`."""
        key: Run = {"writer": writer.name, "words": words, "jobs": list(jobs), "seed": seed, **how}
        if any(key.items() <= run.items() for run in self.all):
            return
        how = {"annealed": True} | how
        found = self._learner.chain(text, writer.division.held_out, jobs, seed=seed, **how)
        self.all.append(key | {"steps_a_pass": steps_a_pass(text)} | provenance(self.options) | found)
        losses = ", ".join(f"{loss:.3f}" for loss in found["losses"])
        progress(f"{key}: {losses}; best steps {found['best_steps']}")
        keep(self._name, values={}, limits={}, raw=self.raw, options=self.options)

    def table(self) -> Any:
        """A row for each text and chain."""
        rows = []
        keys = [(run["writer"], run["words"], tuple(run["jobs"]), run.get("annealed", True)) for run in self.all]
        for writer, words, jobs, annealed in dict.fromkeys(keys):
            key = (writer, words, jobs, annealed)
            same = [run for run, other in zip(self.all, keys, strict=True) if other == key]
            passes = sum(jobs) / same[0]["steps_a_pass"]
            steps = " + ".join(map(str, jobs)) + ("" if annealed else ", full rate")
            rows.append([writer, str(words), steps, f"{passes:.1f}", f"{mean(map(won, same)):.3f}", str(len(same))])
        return table("What jobs win", ["writer", "words", "steps", "passes", "won, nats", "seeds"], rows)


@contextmanager
def runs_of(name: str, options: argparse.Namespace) -> Iterator[Runs]:
    """The bench's runs. Ctrl-C ends the block."""
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        folder = learner(models, quick=options.quick)
        texts = options.text or [sample_text(Path(scratch))]
        yield Runs(name, options, [_writer(text, folder, Path(scratch)) for text in texts], Learner(folder))


def _writer(text: Path, folder: Path, scratch: Path) -> Writer:
    blocks = scratch / f"{text.stem}.npz"
    divide(text, folder, blocks)
    words = len(text.read_text(encoding="utf-8", errors="replace").split())
    return Writer(name=text.stem, words=words * 9 // 10, division=learn_text.load(str(blocks)))
