"""The methods of bench.tasks: `run` runs one, and tells its accuracy on the dev set."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.common.ours import load_model, planned, rehearsal_of
from bench.common.peers import build
from bench.learn.curve import Curve
from bench.learn.ours import teach_exact, teach_mezo
from bench.learn.peers import METHODS as PEERS
from bench.learn.peers import Peer, teach
from bench.tasks.datasets import TASKS, Labelled, name_of
from pocketllm.daemon.training.rehearsal import FILE_NAME as SAMPLES
from pocketllm.daemon.training.run import PCA_BLOCKS
from pocketllm.engine.data.batches import Batch, Batches, batch_at
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.formats.tokenizer import eos_id
from pocketllm.engine.streamed.model import LanguageModel

#: Examples of each label that are learned from.
PER_CLASS = 512
_BATCH = 16
_MEASURED_AT_ONCE = 64
#: Only the end counts, and measuring takes half a minute.
_POINTS = 1
#: Of the linear probe: the best penalty on a fifth of the training examples is taken.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Work:
    """What a method gets."""

    folder: Path  #: of the model
    method: str
    training: Batches
    dev: Batches
    seconds: float
    seed: int
    rate: float  #: of a peer


def sampled(rows: Sequence[Labelled], seed: int, count: int = PER_CLASS) -> list[Labelled]:
    """So many of each label, in a random order."""
    draw = random.Random(seed)
    chosen: list[Labelled] = []
    for label in sorted({row.label for row in rows}):
        of_label = [row for row in rows if row.label == label]
        chosen += draw.sample(of_label, min(count, len(of_label)))
    draw.shuffle(chosen)
    return chosen


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
def zero_shot(work: Work) -> dict[str, Any]:
    """The base model."""
    model = load_model(work.folder)
    model.set_parameters(None)
    return {"accuracy": accuracy(our_logits(model), work.dev)}


def probe(work: Work) -> dict[str, Any]:
    """Logistic regression on the base model's features."""
    model = load_model(work.folder)
    with torch.inference_mode():
        model.set_parameters(None)
        parts = [(features(model, part), part) for bucket in work.training for part in bucket.split(_MEASURED_AT_ONCE)]
        label_ids = torch.tensor(work.training[0].label_ids)
        x = torch.cat([found for found, _ in parts])
        wanted = torch.cat([part.targets.max(1).values for _, part in parts])
        y = (wanted[:, None] == label_ids).int().argmax(1)
    x, y = x.clone(), y.clone()  # tensors of inference mode cannot be learned from
    centre, spread = x.mean(0), x.std(0) + 1e-6
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(work.seed))
    kept, tried = order[len(x) // 5 :], order[: len(x) // 5]
    scaled = (x - centre) / spread
    scores = {
        penalty: float((_regress(scaled[kept], y[kept], penalty)(scaled[tried]).argmax(1) == y[tried]).float().mean())
        for penalty in _PENALTIES
    }
    penalty = max(scores, key=lambda one: scores[one])
    classify = _regress(scaled, y, penalty)
    with torch.inference_mode():
        found = accuracy(lambda blocks: classify((features(model, blocks) - centre) / spread), work.dev)
    return {"accuracy": found, "penalty": penalty}


def _regress(x: torch.Tensor, y: torch.Tensor, penalty: float) -> Callable[[torch.Tensor], torch.Tensor]:
    classes = int(y.max()) + 1
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + penalty * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    found, offset = weight.detach(), bias.detach()
    return lambda some: some @ found + offset


@torch.no_grad()
def mezo(work: Work) -> dict[str, Any]:
    """Our MeZO."""
    model = load_model(work.folder)
    curve = Curve(work.seconds, lambda: accuracy(our_logits(model), work.dev), points=_POINTS)
    sample = max(work.training, key=len)[slice(0, PCA_BLOCKS)]
    found = teach_mezo(model, work.training, sample, curve, seed=work.seed, batch=_BATCH)
    return _report(curve) | found


@torch.no_grad()
def exact(work: Work) -> dict[str, Any]:
    """Our exact gradients."""
    tokens = max(bucket.inputs.shape[1] for bucket in work.training)
    plan = planned(work.folder, mode="exact", batch=_BATCH, tokens=tokens).plan
    model = load_model(work.folder)
    (work.folder / SAMPLES).unlink(missing_ok=True)  # of an earlier run
    began = time.perf_counter()
    samples = rehearsal_of(model)
    samples_seconds = time.perf_counter() - began
    curve = Curve(work.seconds, lambda: accuracy(our_logits(model), work.dev), points=_POINTS)
    found = teach_exact(model, plan, work.training, curve, seed=work.seed, samples=samples)
    return _report(curve) | found | {"samples_seconds": samples_seconds}


def peer(work: Work) -> dict[str, Any]:
    """Textbook MeZO or autograd, over rank 8 factors of every linear map."""
    taught = Peer(build(work.folder), checkpointing=False, chunks=False)

    @torch.no_grad()
    def measure() -> float:
        return accuracy(taught.choice_logits, work.dev)

    curve = teach(
        lambda: PEERS[work.method](taught, work.rate, work.seed),
        lambda number: batch_at(work.training, step=number, size=_BATCH, seed=work.seed),
        work.seconds,
        measure,
        points=_POINTS,
    )
    return _report(curve)


def _report(curve: Curve) -> dict[str, Any]:
    """The curve is of accuracies here."""
    return {"accuracy": curve.points[-1][2], "curve": curve.points, "steps": curve.steps}


METHODS = {"zero_shot": zero_shot, "probe": probe, "mezo": mezo, "exact": exact, "textbook": peer, "autograd": peer}


def run(
    method: str,
    folder: str,
    data: str,
    *,
    seed: int,
    seconds: float = 0.0,
    rate: float | None = None,
    per_class: int = PER_CLASS,
    dev_rows: int | None = None,
) -> dict[str, Any]:
    """Run one method. folder: of a model stored as floats; data: of a task; dev_rows: only the first of the dev set."""
    kind, tokenizer = TASKS[name_of(Path(data))], open_model_folder(Path(folder)).tokenizer()
    chosen = sampled(kind.examples(Path(data), dev=False), seed, per_class)
    training = kind.encode(chosen, tokenizer, eos_id(tokenizer))
    dev = kind.encode(kind.examples(Path(data), dev=True)[:dev_rows], tokenizer, eos_id(tokenizer))
    found = METHODS[method](Work(Path(folder), method, training, dev, seconds, seed, rate or 0.0))
    return found | {"dev_rows": sum(len(bucket) for bucket in dev)}
