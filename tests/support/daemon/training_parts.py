"""Real small parts of a training run: a store in memory, functions in place of a model, and a method with a state."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import isfinite

import torch

from pocketllm.daemon.training.checkpoints import Checkpoint, StoredRun
from pocketllm.daemon.training.early_stopping import EarlyStopping
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


@dataclass
class Memory(StoredRun):
    """One in memory that copies, as a disk does."""

    kept: list[StepRecord] = field(default_factory=list)
    kept_stopping: EarlyStopping | None = None
    best: Checkpoint | None = None
    latest: tuple[Checkpoint, int] | None = None  #: with the halvings that it is of
    went_back: list[tuple[int, int]] = field(default_factory=list)  #: from which step, to which
    forgotten: list[list[StepRecord]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def records(self) -> list[StepRecord]:
        return list(self.kept)

    def append(self, record: StepRecord, *, seconds: float) -> None:
        assert record.step == len(self.kept) + 1
        self.kept.append(record)
        self.seconds.append(seconds)

    def early_stopping(self) -> EarlyStopping | None:
        return deepcopy(self.kept_stopping)

    def keep(self, stopping: EarlyStopping) -> None:
        self.kept_stopping = deepcopy(stopping)

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        self.forgotten.append(self.kept[stopping.best_step :])
        del self.kept[stopping.best_step :]
        self.keep(stopping)
        self.went_back.append((step, stopping.best_step))

    def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
        copied = deepcopy(checkpoint)
        if checkpoint.step == stopping.best_step:
            self.best = copied
        else:
            self.latest = copied, stopping.halvings

    def load(self, stopping: EarlyStopping) -> Checkpoint | None:
        if self.latest is not None:
            latest, halvings = self.latest
            if halvings == stopping.halvings and stopping.best_step < latest.step <= len(self.kept):
                return deepcopy(latest)
        if stopping.best_step == 0:
            return None
        assert self.best is not None and self.best.step == stopping.best_step
        return deepcopy(self.best)


class Momentum:
    """A Method whose state is more than its records: gradient descent with momentum on `distance`."""

    def __init__(self, b: torch.Tensor, *, rate: float = 0.08, loss: Function = distance) -> None:
        self.b, self.velocity = b, torch.zeros_like(b)
        self._rate, self._loss = rate, loss
        self.taken: list[int] = []  #: steps, also those taken again

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord:
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
