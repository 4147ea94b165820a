"""The peers of bench.learn, each as good as we could make it with transformers and torch, on the same batches.

python -m bench.learn_peers METHOD --folder DIR --blocks FILE --seconds 120 --seed 0

METHOD is `inference` (the logits of a batch, again and again), `textbook` (MeZO as published, over low-rank factors),
`exact` (backpropagation into low-rank factors, AdamW). Prints one line of JSON: the held-out loss over time.
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

from bench import learn_text, peers
from bench.child import memory_of, write_line
from bench.learn_curve import Curve, Schedule
from pocketllm.mezo.batches import Blocks, batch_at
from pocketllm.mezo.layers import LayerStack

#: Of a first factor A and of MeZO's noise, besides the run's own seed.
_RANK = 8
#: MeZO's for low-rank factors (arXiv 2305.17333, table 15).
_EPSILON = 1e-2
_WARM_UP_STEPS = 10
#: Blocks that are measured together.
_AT_ONCE = 8


class LowRank(torch.nn.Module):
    """A linear map with factors beside it: kept in fp32, multiplied in the map's dtype."""

    def __init__(self, inner: torch.nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = inner
        a = torch.randn(_RANK, inner.in_features, generator=generator) / math.sqrt(inner.in_features)
        self.a = torch.nn.Parameter(a)
        self.b = torch.nn.Parameter(torch.zeros(inner.out_features, _RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map's output and the factors' with a scaling of one."""
        low = x @ self.a.t().to(x.dtype)
        y: torch.Tensor = self.inner(x) + low @ self.b.t().to(x.dtype)
        return y


class Peer:
    """transformers' model with low-rank factors on every linear map of the layers from `first` on."""

    def __init__(self, folder: Path, *, first: int, cached: bool, seed: int) -> None:
        """cached: keep what enters layer `first` of each batch that was seen."""
        self.model = peers.build(folder).eval()
        self.model.requires_grad_(False)
        self.stack = LayerStack(self.model, {}, {}, None)
        self.first, self.cached = first, cached
        self._kept: dict[int, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        self.factors: list[torch.nn.Parameter] = []
        for path, module in list(self.model.named_modules()):
            number = self.stack.number_of(path)
            if isinstance(module, torch.nn.Linear) and number is not None and number >= first:
                parent, _, own = path.rpartition(".")
                made = LowRank(module, generator)
                setattr(self.model.get_submodule(parent), own, made)
                self.factors += [made.a, made.b]

    def loss(self, blocks: Blocks, number: int | None = None) -> torch.Tensor:
        """The mean loss of blocks; number: of the batch, for the cache."""
        if blocks.choices is not None:
            wanted = blocks.targets.max(1).values  # one target a row
            places = (wanted[:, None] == torch.tensor(blocks.choices)).int().argmax(1)
            return F.cross_entropy(self.choice_logits(blocks), places)
        if self.cached and number is not None:
            self.stack.enter_at(self.first, self._entering(blocks, number))
        try:
            hidden = self.model.base_model(input_ids=blocks.inputs, use_cache=False).last_hidden_state
        finally:
            self.stack.reset()
        logits = self.model.get_output_embeddings()(hidden).flatten(0, 1)
        return F.cross_entropy(logits.float(), blocks.targets.flatten())

    def choice_logits(self, blocks: Blocks) -> torch.Tensor:
        """(rows, choices) fp32: the label words' logits where the label is to come."""
        hidden = self.model.base_model(input_ids=blocks.inputs, use_cache=False).last_hidden_state
        rows = self.model.get_output_embeddings().weight[list(blocks.choices or ())]
        return hidden[blocks.targets >= 0].float() @ rows.float().t()

    @torch.no_grad()
    def held_out(self, blocks: Blocks) -> float:
        """The mean loss in nats per token."""
        parts = list(blocks.split(_AT_ONCE))
        return sum(float(self.loss(part)) * part.tokens for part in parts) / blocks.tokens

    @torch.no_grad()
    def _entering(self, blocks: Blocks, number: int) -> torch.Tensor:
        if number not in self._kept:
            self.stack.leave_at(self.first)
            self.model.base_model(input_ids=blocks.inputs, use_cache=False)
            self._kept[number] = self.stack.take_leaving()
            self.stack.reset()
        return self._kept[number]


def textbook(peer: Peer, rate: float, seed: int) -> Callable[[Blocks, int, float], float]:
    """Algorithm 1 of MeZO: Gaussian z drawn again from the step's seed, a constant learning rate."""

    def perturb(step: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for factor in peer.factors:
            factor.data.add_(torch.randn(factor.shape, generator=generator), alpha=scale)

    @torch.no_grad()
    def step(batch: Blocks, number: int, _share: float) -> float:
        perturb(number, _EPSILON)
        plus = float(peer.loss(batch))
        perturb(number, -2 * _EPSILON)
        minus = float(peer.loss(batch))
        perturb(number, _EPSILON)
        perturb(number, -rate * (plus - minus) / (2 * _EPSILON))
        return (plus + minus) / 2

    return step


def exact(peer: Peer, rate: float) -> Callable[[Blocks, int, float], float]:
    """Backpropagation, AdamW, the learning rate warmed up and then falling as a cosine."""
    for factor in peer.factors:
        factor.requires_grad_(True)
    optimizer = torch.optim.AdamW(peer.factors, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def step(batch: Blocks, number: int, share: float) -> float:
        optimizer.param_groups[0]["lr"] = rate * share
        loss = peer.loss(batch, number)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def infer(options: argparse.Namespace) -> dict[str, Any]:
    """Plain inference: the logits of one batch of the training text, a few times."""
    model = peers.build(options.folder).eval()
    batch = learn_text.load(options.blocks).training[slice(0, options.batch)]
    with torch.inference_mode():
        for _ in range(3):
            model(input_ids=batch.inputs, use_cache=False)
    return {"peak_rss_bytes": memory_of().get("VmHWM")}


def learn(options: argparse.Namespace) -> dict[str, Any]:
    """One run; the held-out loss over time."""
    division = learn_text.load(options.blocks)
    peer = Peer(options.folder, first=options.first, cached=options.cached, seed=options.seed)
    is_exact = options.method == "exact"
    step = exact(peer, options.rate) if is_exact else textbook(peer, options.rate, options.seed)
    training = Blocks(inputs=division.training.inputs[:-1], targets=division.training.targets[:-1])  # the last is short
    batches = -(-len(training) // options.batch)
    curve = Curve(options.seconds, lambda: peer.held_out(division.held_out))
    schedule = Schedule(_WARM_UP_STEPS)
    while curve.running:
        number = curve.steps + 1
        batch = _batch(training, number, options, batches)
        step(batch, (number - 1) % batches if options.cached else number, schedule.share(number, curve.remaining))
        curve.stepped()
    return curve.report()


def _batch(training: Blocks, number: int, options: argparse.Namespace, batches: int) -> Blocks:
    """Drawn anew in each epoch; where batches are cached, the first epoch's again."""
    step = (number - 1) % batches + 1 if options.cached else number
    return batch_at((training,), step=step, size=options.batch, seed=options.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one peer."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn_peers", description="Let one peer learn a text.")
    parser.add_argument("method", choices=["inference", "textbook", "exact"])
    parser.add_argument("--folder", type=Path, required=True, help="a native model of Llama's kind, stored as floats")
    parser.add_argument("--blocks", type=Path, required=True, help="from bench.learn_text")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--first", type=int, default=0, help="the lowest layer that learns")
    parser.add_argument("--cached", action="store_true", help="keep what enters that layer")
    options = parser.parse_args(arguments)
    write_line(infer(options) if options.method == "inference" else learn(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
