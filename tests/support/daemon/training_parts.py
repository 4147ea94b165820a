"""Real small parts of a training run: functions in place of a model, and a method with a state."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.errors import TrainingDiverged
from pocketllm.engine.method import Method, StepRecord
from pocketllm.engine.noise import Perturbation
from pocketllm.engine.params.lora import Adapter
from pocketllm.mezo.method import MeZO, MeZOPlan

BLOCK = Batch(inputs=torch.zeros(1, 1, dtype=torch.int64), targets=torch.zeros(1, 1, dtype=torch.int64))
#: Where the loss is least.
GOAL = 0.5

Function = Callable[[torch.Tensor], float]


def distance(b: torch.Tensor) -> float:
    """A loss that is least at GOAL."""
    return float((b.double() - GOAL).square().mean())


class Momentum:
    """A Method whose state is more than its records: gradient descent with momentum on `distance`."""

    def __init__(self, b: torch.Tensor, *, rate: float = 0.08, loss: Function = distance) -> None:
        self.b, self.velocity = b, torch.zeros_like(b)
        self._rate, self._loss = rate, loss
        self.taken: list[int] = []  #: steps, also those taken again

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord | None:
        loss = self._loss(self.b)
        if not isfinite(loss):
            raise TrainingDiverged("no number")
        self.taken.append(number)
        gradient = 2 * (self.b - GOAL) / self.b.numel()
        self.velocity.mul_(0.5).add_(gradient)
        self.b.sub_(self.velocity, alpha=self._rate * share)
        norm = float(gradient.norm())
        return StepRecord(step=number, seed=1, scalars=(norm,), loss=loss, learning_rate=self._rate * share, tokens=1)

    def state(self) -> dict[str, torch.Tensor]:
        return {"b": self.b, "velocity": self.velocity}

    def restore(self, state: Mapping[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
        self.b.copy_(state.get("b", torch.zeros_like(self.b)))
        self.velocity.copy_(state.get("velocity", torch.zeros_like(self.b)))


def mezo_on(theta: Adapter, loss: Function = distance, *, plan: MeZOPlan) -> Method:
    """MeZO on a function of an adapter's only B, from zero."""
    (b,) = theta.b.values()

    def losses(points: Sequence[Perturbation], _: Batch) -> list[float]:
        return [loss(b + point.distance * point.direction.of(0, b.shape)) for point in points]

    def to_start() -> None:
        b.zero_()

    return MeZO(losses, theta, plan, to_start)
