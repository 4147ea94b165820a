"""The interface between the trainer and a training method, and the record of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pocketllm.engine.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One finished step, as in the step log. MeZO restores a run from these alone."""

    step: int  #: from 1
    seed: int
    scalars: tuple[float, ...]  #: float32; MeZO: the projected gradient of each direction; exact: the gradient's norm
    loss: float  #: nats per token
    learning_rate: float  #: float32
    tokens: int  #: predicted tokens, each counted once, even where the step runs several forward passes


class Method(Protocol):
    """A training method: how a step changes the parameters, and the state that a resumed run needs."""

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord | None:
        """Take step `number` (from 1) on a batch, or a part of it: None until the last part.

        remaining: the remaining part of the run, from 1 to 0. share: early stopping's factor on the rate.
        Raises TrainingDiverged where the loss or a gradient is not finite; then restore it before the next step.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """What `restore` needs besides the records; empty if these are enough."""

    def restore(self, state: Mapping[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
        """Restore the run to where it was after these records, which begin with step 1; without any, to its start."""
