"""What a learning method is to the trainer, and what it leaves of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pocketllm.engine.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One finished step, as the step log keeps it. MeZO needs no more than these to repeat a run."""

    step: int  #: from 1
    seed: int
    scalars: tuple[float, ...]  #: float32; MeZO: the projected gradient of each direction; exact: the gradient's norm
    loss: float  #: nats per token
    learning_rate: float  #: float32
    tokens: int  #: predicted tokens, counted once however often the step saw them


class Method(Protocol):
    """A way to learn: how a step changes what is trained, and what a later start needs to go on."""

    def step(self, number: int, batch: Batch, *, remaining: float, share: float) -> StepRecord:
        """Take step `number` (from 1) on a batch.

        remaining: the part of the run that lies ahead, from 1 to 0. share: what early stopping has left of the rate.
        Raises TrainingDiverged, with nothing changed, where the loss is no number.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """All that `restore` needs besides the records; empty where these are enough."""

    def restore(self, state: dict[str, torch.Tensor], records: Sequence[StepRecord]) -> None:
        """Go to where the run was after these records, from step 1; without any, to its start."""
