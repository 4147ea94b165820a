"""Exact gradients as the trainer runs them: LoRA's A and B (arXiv 2106.09685), NAdam (nadam.py)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import cos, isfinite, pi, sqrt

import numpy as np
import torch

from pocketllm.backprop.gradients import LayerwiseGradients, PassSize, Sums
from pocketllm.backprop.nadam import NAdam
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.method import StepRecord
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel

#: alpha / rank.
SCALING = 2.0
#: The served B over the trained one: interpolation with the base model (WiSE-FT, arXiv 2109.01903). The last part of
#: B gains little on the text and does half of the harm on other text.
SERVED = 0.87
#: B's learning rate over A's (LoRA+, arXiv 2402.12354).
B_RATE = 4.0
#: Steps of warm-up, and the factor on the rate at the end of the cosine (arXiv 1608.03983).
WARM_UP_STEPS, MIN_SHARE = 10, 0.05


#: Fewer training tokens than this take a lower rate, by the square root. At the full rate a text of a thousand words is
#: learned by heart within ten steps, and held-out text gets worse.
FULL_RATE_TOKENS = 2**16


def rate_for(rate: float, tokens: int) -> float:
    """The learning rate for a training text of this length. rate: for a long text."""
    return rate * min(1.0, sqrt(tokens / FULL_RATE_TOKENS))


@dataclass(frozen=True, kw_only=True)
class ExactPlan:
    """A run's parameters, besides the model, the initial adapter and the batches."""

    seed: int
    rate: float  #: NAdam's peak learning rate for A
    samples_weight: float = 0.0  #: weight of the rehearsal samples in the loss; the text has the rest


def fresh_adapter(model: LanguageModel, *, rank: int, seed: int) -> Adapter:
    """A new adapter of every linear map of the layers: A initialised as torch's nn.Linear, B zero."""
    generator = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for path in adapted_paths(model):
        linear = model.linears[path]
        bound = 1 / sqrt(linear.in_features)
        a[path] = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        b[path] = torch.zeros(linear.out_features, rank)
    return Adapter(base=model.folder.manifest.name, alpha=SCALING * rank, a=a, b=b)


def adapted_paths(model: LanguageModel) -> list[str]:
    """Every linear map of the layers, in model order."""
    return [path for path in model.linears if model.stack.number_of(path) is not None]


class Exact:
    """pocketllm.engine.method.Method: NAdam on exact gradients."""

    def __init__(
        self,
        model: LanguageModel,
        adapter: Adapter,
        plan: ExactPlan,
        size: PassSize,
        *,
        to_start: Callable[[], None],
        samples: Callable[[int], Batch] | None = None,
    ) -> None:
        """Train `adapter`, the model's current parameters, in place. Raises UnsupportedModel.

        to_start: resets the adapter, in place, to the run's start. samples: a step's rehearsal blocks, sampled from the
        base model, against forgetting.
        """
        self._model, self._adapter, self._plan, self._to_start, self._samples = model, adapter, plan, to_start, samples
        self._learning = replace(adapter, alpha=adapter.alpha / SERVED)  # the same A and B
        with self._as_learned():
            self._gradients = LayerwiseGradients(model, self._learning, size)
        self._parameters = {f"a.{path}": a for path, a in adapter.a.items()}
        self._parameters |= {f"b.{path}": b for path, b in adapter.b.items()}
        self._optimizer = NAdam(self._parameters)
        self._sums: Sums = {}  #: of the passes of a step that is not complete

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord | None:
        """See Method: a part is a pass."""
        rate = self._plan.rate * share * schedule(number, remaining)
        weight = self._plan.samples_weight if self._samples else 0.0
        parts = [(batch, 1 - weight)]
        if self._samples and weight:
            parts.append((self._samples(number), weight))
        sums, self._sums = self._sums, {}
        with self._as_learned():
            if not self._gradients(parts, sums):
                self._sums = sums
                return None
        gradients = {name: sums[name] for name in self._parameters}
        square = sum(float(norm) ** 2 for norm in torch._foreach_norm(list(gradients.values())))
        if not isfinite(square):
            raise TrainingDiverged("A gradient is not finite. Start again with a smaller training.rate.")
        for factor, its_rate in (("a.", rate), ("b.", rate * B_RATE)):
            of_factor = {name: gradient for name, gradient in gradients.items() if name.startswith(factor)}
            self._optimizer.update(of_factor, step=number, rate=its_rate)
        return StepRecord(
            step=number,
            seed=self._plan.seed,
            scalars=(float(np.float32(sqrt(square))),),
            loss=float(sums["losses"][0]) / max(1, batch.tokens),
            learning_rate=float(np.float32(rate)),
            tokens=batch.tokens,
        )

    @contextmanager
    def _as_learned(self) -> Iterator[None]:
        """The model with the adapter at the strength that is trained, which is more than what is served."""
        self._model.set_parameters(self._learning)
        try:
            yield
        finally:
            self._model.set_parameters(self._adapter)

    def state(self) -> dict[str, torch.Tensor]:
        """A, B and NAdam's moments of each; and in the middle of a step, its sums so far."""
        found = dict(self._parameters)
        found |= {f"mean.{name}": mean for name, mean in self._optimizer.means.items()}
        found |= {f"square.{name}": square for name, square in self._optimizer.squares.items()}
        return found | {f"sum.{name}": tensor for name, tensor in self._sums.items()}

    def restore(self, state: Mapping[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
        """See Method: the records are not needed."""
        self._sums = {}
        if not state:
            self._to_start()
            self._optimizer.reset()
            return
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self._sums = {name.removeprefix("sum."): state[name] for name in state if name.startswith("sum.")}


def schedule(step: int, remaining: float) -> float:
    """A step's factor on the peak rate: linear warm-up, then a cosine of `remaining`, which falls from 1 to 0."""
    falling = MIN_SHARE + (1 - MIN_SHARE) * (1 + cos(pi * (1 - remaining))) / 2
    return min(1.0, step / WARM_UP_STEPS) * falling
