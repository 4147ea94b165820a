"""The peers of bench.learn, each as good as we could make it with transformers and torch, on the same batches.

`learn` is one run: `textbook` (MeZO as published, over low-rank factors) or `autograd` (backpropagation into low-rank
factors, AdamW, warm-up and cosine). bench.step lets `autograd` take steps on random tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.common import peers
from bench.learn import text as learn_text
from bench.learn.curve import POINTS, Curve, Schedule
from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, batch_at

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
    """MeZO: Gaussian z drawn again from the step's seed, a constant learning rate."""
    peer.add_factors(seed)

    @torch.no_grad()
    def step(batch: Batch, number: int, _share: float) -> float:
        def perturb(scale: float) -> None:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            for factor in peer.factors:
                factor.data.add_(torch.randn(factor.shape, generator=generator), alpha=scale)

        losses = peers.mezo_step(perturb, lambda: float(peer.loss(batch)), epsilon=_EPSILON, rate=rate)
        return sum(losses) / 2

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


def built(folder: str, *, checkpointing: bool = False, chunks: bool = False, dtype: str | None = None) -> Peer:
    """The peer of a model folder of Llama's kind, stored as floats. dtype: in place of the one that ours compute in."""
    return Peer(peers.build(Path(folder), dtype), checkpointing=checkpointing, chunks=chunks)


def learn(
    method: str, folder: str, blocks: str, *, batch: int, seconds: float, seed: int, rate: float, **variant: Any
) -> dict[str, Any]:
    """One run; the held-out loss over time, from when the model is loaded. variant: see `built`."""
    division, peer = learn_text.load(blocks), built(folder, **variant)
    training = (division.training[slice(0, -1)],)  # the last is short
    return teach(
        lambda: METHODS[method](peer, rate, seed),
        lambda number: batch_at(training, step=number, size=batch, seed=seed),
        seconds,
        lambda: peer.held_out(division.held_out),
    ).report()


def prepare_step(folder: str, *, batch: int, tokens: int, **variant: Any) -> Callable[[], float]:
    """What takes a step of `autograd` on one batch of random tokens."""
    peer = built(folder, **variant)
    step = autograd(peer, rate=1e-3, seed=0)
    ids = torch.randint(peer.model.config.vocab_size, (batch, tokens + 1))
    blocks = Batch(inputs=ids[:, :-1], targets=ids[:, 1:])
    return lambda: step(blocks, 1, 1.0)
