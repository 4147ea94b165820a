"""The peers of bench.learn, each as good as we could make it with transformers and torch, on the same batches.

python -m bench.learn.peers METHOD --folder DIR --blocks FILE --seconds 120 --seed 0 --rate 4e-3

METHOD is `textbook` (MeZO as published, over low-rank factors) or `autograd` (backpropagation into low-rank factors,
AdamW, warm-up and cosine). Prints one line of JSON: the held-out loss over time, from when the model is loaded. With
--turns TOKENS in place of --blocks it takes steps on random tokens instead (bench.turns).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench import peers
from bench.child import write_line
from bench.learn import text as learn_text
from bench.learn.curve import POINTS, Curve, Schedule
from bench.turns import serve
from pocketllm.engine.data.batches import Batch, batch_at
from pocketllm.engine.streamed.loss import IGNORE_INDEX

RANK = 8
#: MeZO's for low-rank factors (arXiv 2305.17333, table 15).
_EPSILON = 1e-2
_WARM_UP_STEPS = 10
#: Blocks that are measured together, and positions whose logits there are at a time.
_AT_ONCE, _CHUNK = 8, 128

#: One step on a batch: its number (from 1), and the part of the full learning rate.
Step = Callable[[Batch, int, float], float]


class LoRABranch(torch.nn.Module):
    """A linear map with factors beside it: kept in fp32, multiplied in the map's dtype."""

    def __init__(self, inner: torch.nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = inner
        a = torch.randn(RANK, inner.in_features, generator=generator) / math.sqrt(inner.in_features)
        self.a = torch.nn.Parameter(a)
        self.b = torch.nn.Parameter(torch.zeros(inner.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map's output and the factors' with a scaling of one."""
        low = x @ self.a.t().to(x.dtype)
        y: torch.Tensor = self.inner(x) + low @ self.b.t().to(x.dtype)
        return y


class ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy of (positions, width) states through a frozen head, without all logits at once.

    The gradient of the states is taken in the same pass, as Liger's fused linear cross-entropy does: nothing is
    recomputed.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(positions,) targets, IGNORE_INDEX where nothing is predicted."""
        count = int((targets != IGNORE_INDEX).sum())
        total = torch.zeros((), dtype=torch.float64)
        ctx.gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), _CHUNK):
            rows = slice(start, start + _CHUNK)
            wanted = targets[rows]
            logits = (states[rows] @ head.t()).float()
            total += F.cross_entropy(logits, wanted, ignore_index=IGNORE_INDEX, reduction="sum")
            if ctx.gradient is not None:
                predicted = wanted != IGNORE_INDEX
                error = logits.softmax(1).mul_(predicted[:, None])
                error[predicted.nonzero()[:, 0], wanted[predicted]] -= 1
                torch.mm((error / count).to(head.dtype), head, out=ctx.gradient[rows])
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The states' gradient."""
        return ctx.gradient * errors[0], None, None


class Peer:
    """transformers' model with low-rank factors on every linear map of its layers."""

    def __init__(self, model: Any, *, checkpointing: bool, chunks: bool) -> None:
        """checkpointing: keep what enters each layer alone, and recompute; chunks: never all logits at once."""
        self.model = model.eval()
        self.model.requires_grad_(False)
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.train()  # which checkpointing is for; there is no dropout
        self.chunks = chunks
        self.factors: list[torch.nn.Parameter] = []

    def add_factors(self, seed: int) -> None:
        """B is zero, so that nothing changes yet."""
        generator = torch.Generator().manual_seed(seed)
        head = self.model.get_output_embeddings()
        for path, module in list(self.model.named_modules()):
            if isinstance(module, torch.nn.Linear) and module is not head:
                parent, _, own = path.rpartition(".")
                made = LoRABranch(module, generator)
                setattr(self.model.get_submodule(parent), own, made)
                self.factors += [made.a, made.b]

    def loss(self, blocks: Batch) -> torch.Tensor:
        """The mean loss of blocks."""
        if blocks.label_ids is not None:
            wanted = blocks.targets.max(1).values  # one target a row
            places = (wanted[:, None] == torch.tensor(blocks.label_ids)).int().argmax(1)
            return F.cross_entropy(self.choice_logits(blocks), places)
        states, targets = self._states(blocks).flatten(0, 1), blocks.targets.flatten()
        head = self.model.get_output_embeddings()
        if self.chunks:
            loss: torch.Tensor = ChunkedLoss.apply(states, head.weight, targets)  # type: ignore[no-untyped-call, unused-ignore]
            return loss
        return F.cross_entropy(head(states).float(), targets, ignore_index=IGNORE_INDEX)

    def choice_logits(self, blocks: Batch) -> torch.Tensor:
        """(rows, choices) fp32: the label words' logits where the label is to come."""
        rows = self.model.get_output_embeddings().weight[list(blocks.label_ids or ())]
        logits: torch.Tensor = self._states(blocks)[blocks.targets >= 0].float() @ rows.float().t()
        return logits

    @torch.no_grad()
    def held_out(self, blocks: Batch) -> float:
        """The mean loss in nats per token."""
        parts = list(blocks.split(_AT_ONCE))
        return sum(float(self.loss(part)) * part.tokens for part in parts) / blocks.tokens

    def _states(self, blocks: Batch) -> torch.Tensor:
        states: torch.Tensor = self.model.base_model(input_ids=blocks.inputs, use_cache=False).last_hidden_state
        return states


def textbook(peer: Peer, rate: float, seed: int) -> Step:
    """Algorithm 1 of MeZO: Gaussian z drawn again from the step's seed, a constant learning rate."""
    peer.add_factors(seed)

    def perturb(step: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for factor in peer.factors:
            factor.data.add_(torch.randn(factor.shape, generator=generator), alpha=scale)

    @torch.no_grad()
    def step(batch: Batch, number: int, _share: float) -> float:
        perturb(number, _EPSILON)
        plus = float(peer.loss(batch))
        perturb(number, -2 * _EPSILON)
        minus = float(peer.loss(batch))
        perturb(number, _EPSILON)
        perturb(number, -rate * (plus - minus) / (2 * _EPSILON))
        return (plus + minus) / 2

    return step


def autograd(peer: Peer, rate: float, seed: int) -> Step:
    """Backpropagation, AdamW."""
    peer.add_factors(seed)
    for factor in peer.factors:
        factor.requires_grad_(True)
    optimizer = torch.optim.AdamW(peer.factors, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def step(batch: Batch, _number: int, share: float) -> float:
        optimizer.param_groups[0]["lr"] = rate * share
        loss = peer.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


METHODS: dict[str, Callable[[Peer, float, int], Step]] = {"textbook": textbook, "autograd": autograd}


def teach(
    prepare: Callable[[], Step],
    batch: Callable[[int], Batch],
    seconds: float,
    measure: Callable[[], float],
    *,
    points: int = POINTS,
) -> Curve:
    """Train for so many seconds, of which preparing is a part; the curve of what `measure` says."""
    curve = Curve(seconds, measure, points=points)
    step, schedule = prepare(), Schedule(_WARM_UP_STEPS)
    while curve.running:
        number = curve.steps + 1
        step(batch(number), number, schedule.share(number, curve.remaining))
        curve.stepped()
    return curve


def _peer(options: argparse.Namespace) -> Peer:
    model = peers.build(options.folder, options.dtype)
    return Peer(model, checkpointing=options.checkpointing, chunks=options.chunks)


def learn(options: argparse.Namespace) -> dict[str, Any]:
    """One run; the held-out loss over time."""
    division = learn_text.load(options.blocks)
    peer = _peer(options)
    training = (division.training[slice(0, -1)],)  # the last is short

    def batch(number: int) -> Batch:
        return batch_at(training, step=number, size=options.batch, seed=options.seed)

    def prepare() -> Step:
        return METHODS[options.method](peer, options.rate, options.seed)

    return teach(prepare, batch, options.seconds, lambda: peer.held_out(division.held_out)).report()


def take_turns(options: argparse.Namespace) -> None:
    """Steps on one batch of random tokens."""
    peer = _peer(options)
    step = METHODS[options.method](peer, options.rate, options.seed)
    ids = torch.randint(peer.model.config.vocab_size, (options.batch, options.turns + 1))
    blocks = Batch(inputs=ids[:, :-1], targets=ids[:, 1:])
    serve(lambda: step(blocks, 1, 1.0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one peer."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn.peers", description="Let one peer learn a text.")
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--folder", type=Path, required=True, help="a model folder of Llama's kind, stored as floats")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--blocks", type=Path, help="from bench.learn.text")
    work.add_argument("--turns", type=int, metavar="TOKENS", help="a step for each line of stdin, on texts this long")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations instead of keeping them")
    parser.add_argument("--dtype", help="of the weights, in place of the one that ours compute in")
    parser.add_argument("--chunks", action="store_true", help="the loss in chunks of positions, not of all logits")
    options = parser.parse_args(arguments)
    if options.turns:
        take_turns(options)
    else:
        write_line(learn(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
