"""What a guided run adapts, chosen by measurement: how far down from the top the guide is worth following.

For each pair of layers, from the top, the guide's gradient G on one batch is followed for a little way, both ways. The
slope and curvature c that the loss really has along it say how much could be won there at most, to second order,

    slope^2 / (2 c)

(less, where that lies too far off to be known), and slope / |G| says how far guide and loss agree: one, were the guide
exact. Lower layers are taken as long as they promise at least half of what the best one does; below them the guide is
more and more a guess.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.batches import Blocks, Entering
from pocketllm.mezo.carrying import LAYERS_AT_ONCE, lowest_guided
from pocketllm.mezo.descent import GivenDirection
from pocketllm.mezo.directions import whitened_adapter
from pocketllm.mezo.estimator import Point
from pocketllm.mezo.guide import Guide
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.noise import Direction as Noise
from pocketllm.mezo.stream import Stream

#: How far B is moved along G, as a length: over so many numbers, a thousandth of the stream each.
_DISTANCE = 0.3
#: How far what was measured there is taken to hold.
_FARTHEST = 10 * _DISTANCE
#: The part of the best promise that a pair of layers must make.
_LEAST_PROMISE = 0.5


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What was measured of a few layers that lie together."""

    first: int  #: the lowest of them
    paths: tuple[str, ...]  #: their maps that the guide leads to
    agreement: float  #: slope of the loss along the guide, over what the guide says
    promise: float  #: nats per token to be won on that batch, to second order


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """A fresh adapter, and what was measured to choose what it adapts."""

    adapter: Adapter
    aims: list[Aim]  #: from the top
    guide_promise: float  #: nats per token along the guide of all that is adapted
    random_promise: float  #: the same along random signs, as MeZO draws them


def aim(
    model: LanguageModel,
    stream: Stream,
    blocks: Blocks,
    *,
    rank: int,
    head_rank: int,
    seed: int,
    rows_at_once: int,
    carrying: Mapping[int, torch.Tensor],
    on_pass: Callable[[int], None] = lambda _: None,
) -> Aimed:
    """A fresh adapter of the head and of the layers that the guide serves.

    blocks: of the owner's text: A follows the activations on them, and the guide is tried on them. The upper
    layers are looked at (mezo/carrying.py). Deterministic in its arguments.
    """
    highest = model.stack.count
    lowest = max(0, lowest_guided(highest))
    paths = [path for path in stream.led_to if (model.stack.number_of(path) or 0) >= lowest]
    whole = whitened_adapter(
        model,
        stream,
        (blocks,),
        paths=paths,
        rank=rank,
        head_rank=head_rank,
        seed=seed,
        rows_at_once=rows_at_once,
        on_pass=on_pass,
    )
    model.use(whole)
    begun = replace(blocks, entering=Entering(lowest, model.entering(blocks, lowest, rows_at_once)))
    gradients = Guide(model, stream, whole, carrying).look(begun, rows_at_once).gradients
    trial = _Trial(model, whole, begun[slice(0, -(-len(begun) // 2))], rows_at_once)  # half will do
    aims: list[Aim] = []
    for first in range(highest - LAYERS_AT_ONCE, lowest - 1, -LAYERS_AT_ONCE):
        chosen = [p for p in paths if first <= (model.stack.number_of(p) or 0) < first + LAYERS_AT_ONCE]
        agreement, promise = trial.along({path: gradients[path] for path in chosen})
        promise = promise if agreement > 0 else 0.0
        aims.append(Aim(first=first, paths=tuple(chosen), agreement=agreement, promise=promise))
        if promise < _LEAST_PROMISE * max(one.promise for one in aims):
            break
    best = max((one.promise for one in aims), default=0.0)
    kept = [one for one in aims if one.agreement > 0 and one.promise >= _LEAST_PROMISE * best]
    wanted = {model.head_path, *(path for one in kept for path in one.paths)}
    _, guide_promise = trial.along({path: gradient for path, gradient in gradients.items() if path in wanted})
    noise = Noise(seed=seed, step=0)
    numbers = {path: number for number, path in enumerate(whole.b)}
    signs = {path: noise.of(numbers[path], b.shape) for path, b in whole.b.items() if path in wanted}
    _, random_promise = trial.along(signs)
    a = {path: value for path, value in whole.a.items() if path in wanted}
    alpha = float(len(next(iter(a.values()))))  # the ranks of the first map give an adapter its scaling: one
    adapter = Adapter(base=whole.base, alpha=alpha, a=a, b={path: whole.b[path] for path in a})
    return Aimed(adapter=adapter, aims=aims, guide_promise=guide_promise, random_promise=random_promise)


class _Trial:
    """A few steps along a direction and back, on some blocks."""

    def __init__(self, model: LanguageModel, adapter: Adapter, blocks: Blocks, rows_at_once: int) -> None:
        self._model, self._blocks, self._rows_at_once = model, blocks, rows_at_once
        self._numbers = {path: number for number, path in enumerate(adapter.b)}
        self._here = model.mean_loss([blocks], rows_at_once)

    def along(self, gradients: dict[str, torch.Tensor]) -> tuple[float, float]:
        """Slope along these over their length, and what is to be won there at most: nats per token, at least 0."""
        size = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
        if size == 0:
            return 0.0, 0.0
        z = GivenDirection({self._numbers[path]: gradient / size for path, gradient in gradients.items()})
        points = [Point(direction=z, distance=side * _DISTANCE) for side in (1, -1)]
        plus, minus = self._model.losses_at(points, self._blocks, self._rows_at_once)
        slope = (plus - minus) / (2 * _DISTANCE)
        curvature = (plus - 2 * self._here + minus) / _DISTANCE**2
        curvature = max(0.0, curvature)
        best = min(_FARTHEST, abs(slope) / curvature) if curvature else _FARTHEST
        return slope / size, best * (abs(slope) - curvature * best / 2)
