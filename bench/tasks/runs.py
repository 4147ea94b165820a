"""One method of bench.tasks in this process.

python -m bench.tasks.runs METHOD --folder DIR --data DIR --seconds 300 --seed 0

METHOD is one of METHODS. Prints one line of JSON: the accuracy on the dev set.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.child import write_line
from bench.learn.curve import Curve
from bench.learn.ours import open_model, teach_exact, teach_mezo, timed_rehearsal
from bench.learn.peers import METHODS as PEERS
from bench.learn.peers import Peer, Step, teach
from bench.ours import load_model, planned
from bench.peers import build
from bench.tasks.datasets import Task, task_of
from bench.tasks.labelled import Labelled, encode_labelled
from pocketllm.daemon.training.run import PCA_BLOCKS
from pocketllm.engine.data.batches import Batch, Batches, batch_at
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.generate.streaming_text import eos_id
from pocketllm.engine.streamed.model import LanguageModel

#: Examples of each label that are learned from.
PER_CLASS = 512
_BATCH = 16
_MEASURED_AT_ONCE = 64
#: Only the end counts, and measuring takes half a minute.
_POINTS = 1
#: Of the linear probe: the best penalty on a fifth of the training examples is taken.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


def sampled(rows: Sequence[Labelled], seed: int, count: int = PER_CLASS) -> list[Labelled]:
    """So many of each label, in a random order."""
    draw = random.Random(seed)
    chosen: list[Labelled] = []
    for label in sorted({row.label for row in rows}):
        of_label = [row for row in rows if row.label == label]
        chosen += draw.sample(of_label, min(count, len(of_label)))
    draw.shuffle(chosen)
    return chosen


def blocks_of(folder: Path, task: Task, rows: Sequence[Labelled]) -> Batches:
    """As the worker makes them."""
    tokenizer = open_model_folder(folder).tokenizer()
    return encode_labelled(rows, tokenizer, task.template, length=task.tokens, eos=eos_id(tokenizer))


def accuracy(logits: Callable[[Batch], torch.Tensor], buckets: Batches) -> float:
    """The part of the rows whose label has the highest of the logits, (rows, choices)."""
    right, count = 0, 0
    for bucket in buckets:
        for part in bucket.split(_MEASURED_AT_ONCE):
            assert part.label_ids is not None
            wanted = part.targets.max(1).values  # one target a row
            guessed = torch.tensor(part.label_ids)[logits(part).argmax(1)]
            right, count = right + int((guessed == wanted).sum()), count + len(part)
    return right / count


def features(model: LanguageModel, blocks: Batch) -> torch.Tensor:
    """(rows, width) fp32: what the output head takes in where the label is to come."""
    return model.hidden(blocks)[blocks.targets >= 0].float()


def our_logits(model: LanguageModel) -> Callable[[Batch], torch.Tensor]:
    """The label words' logits with the adapter in use."""

    def logits(blocks: Batch) -> torch.Tensor:
        head = model.head.at(None)
        rows = head.gather(torch.tensor(blocks.label_ids)).float()
        return features(model, blocks) @ rows.t()

    return logits


@torch.inference_mode()
def zero_shot(options: argparse.Namespace, _training: Batches, dev: Batches) -> dict[str, Any]:
    """The base model."""
    model = open_model(options.folder)
    model.set_parameters(None)
    return {"accuracy": accuracy(our_logits(model), dev)}


def probe(options: argparse.Namespace, training: Batches, dev: Batches) -> dict[str, Any]:
    """Logistic regression on the base model's features."""
    model = open_model(options.folder)
    with torch.inference_mode():
        model.set_parameters(None)
        parts = [(features(model, part), part) for bucket in training for part in bucket.split(_MEASURED_AT_ONCE)]
        label_ids = torch.tensor(training[0].label_ids)
        x = torch.cat([found for found, _ in parts])
        wanted = torch.cat([part.targets.max(1).values for _, part in parts])
        y = (wanted[:, None] == label_ids).int().argmax(1)
    x, y = x.clone(), y.clone()  # tensors of inference mode cannot be learned from
    centre, spread = x.mean(0), x.std(0) + 1e-6
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(options.seed))
    kept, tried = order[len(x) // 5 :], order[: len(x) // 5]
    scaled = (x - centre) / spread
    scores = {
        penalty: float((_regress(scaled[kept], y[kept], penalty)(scaled[tried]).argmax(1) == y[tried]).float().mean())
        for penalty in _PENALTIES
    }
    penalty = max(scores, key=lambda one: scores[one])
    classify = _regress(scaled, y, penalty)
    with torch.inference_mode():
        found = accuracy(lambda blocks: classify((features(model, blocks) - centre) / spread), dev)
    return {"accuracy": found, "penalty": penalty}


def _regress(x: torch.Tensor, y: torch.Tensor, penalty: float) -> Callable[[torch.Tensor], torch.Tensor]:
    classes = int(y.max()) + 1
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    found, offset = weight.detach(), bias.detach()
    return lambda some: some @ found + offset


@torch.no_grad()
def mezo(options: argparse.Namespace, training: Batches, dev: Batches) -> dict[str, Any]:
    """Our MeZO."""
    model = open_model(options.folder)
    curve = Curve(options.seconds, lambda: accuracy(our_logits(model), dev), points=_POINTS)
    sample = max(training, key=len)[slice(0, PCA_BLOCKS)]
    found = teach_mezo(model, training, sample, curve, seed=options.seed, batch=_BATCH)
    return _report(curve) | found


@torch.no_grad()
def exact(options: argparse.Namespace, training: Batches, dev: Batches) -> dict[str, Any]:
    """Our exact gradients."""
    tokens = max(bucket.inputs.shape[1] for bucket in training)
    plan = planned(options.folder, mode="exact", batch=_BATCH, tokens=tokens).plan
    model = load_model(options.folder, plan.replicas)
    samples, samples_seconds = timed_rehearsal(model)
    curve = Curve(options.seconds, lambda: accuracy(our_logits(model), dev), points=_POINTS)
    found = teach_exact(model, plan, training, curve, seed=options.seed, samples=samples)
    return _report(curve) | found | {"samples_seconds": samples_seconds}


def peer(options: argparse.Namespace, training: Batches, dev: Batches) -> dict[str, Any]:
    """Textbook MeZO or autograd, over rank 8 factors of every linear map."""
    taught = Peer(build(options.folder), checkpointing=False, chunks=False)

    def prepare() -> Step:
        return PEERS[options.method](taught, options.rate, options.seed)

    def batch(number: int) -> Batch:
        return batch_at(training, step=number, size=_BATCH, seed=options.seed)

    @torch.no_grad()
    def measure() -> float:
        return accuracy(taught.choice_logits, dev)

    return _report(teach(prepare, batch, options.seconds, measure, points=_POINTS))


def _report(curve: Curve) -> dict[str, Any]:
    """The curve is of accuracies here."""
    return {"accuracy": curve.points[-1][2], "curve": curve.points, "steps": curve.steps}


METHODS = {"zero_shot": zero_shot, "probe": probe, "mezo": mezo, "exact": exact, "textbook": peer, "autograd": peer}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one method."""
    parser = argparse.ArgumentParser(prog="python -m bench.tasks.runs", description="Run one method on one task.")
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--folder", type=Path, required=True, help="a model folder stored as floats")
    parser.add_argument("--data", type=Path, required=True, help="a task's folder, as datasets.py names it")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3, help="a peer's learning rate")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="examples of each label")
    parser.add_argument("--dev-rows", type=int, help="only the first rows of the dev set")
    options = parser.parse_args(arguments)
    task = task_of(options.data)
    chosen = sampled(task.examples(options.data, dev=False), options.seed, options.per_class)
    training = blocks_of(options.folder, task, chosen)
    dev = blocks_of(options.folder, task, task.examples(options.data, dev=True)[: options.dev_rows])
    found = METHODS[options.method](options, training, dev)
    write_line(found | {"dev_rows": sum(len(bucket) for bucket in dev)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
