"""Early stopping (Prechelt 1998) on the validation split.

After PATIENCE checks without a new best, a run rolls back to its best step and continues with half the learning rate.
After MAX_HALVINGS it ends with its best step.
"""

from dataclasses import dataclass
from enum import Enum, auto
from math import inf, isfinite

from pocketllm.engine.errors import TrainingDiverged

#: Checks without a new best before a roll-back: single batches and random directions are noisy.
PATIENCE = 3
#: Halvings of the learning rate before a run ends.
MAX_HALVINGS = 3
#: A loss this far above the best, as a share of the first loss, rolls back at once: all checks are on the same text.
DIVERGENCE = 0.1


class Verdict(Enum):
    """What to do after a check."""

    NEW_BEST = auto()
    GO_ON = auto()
    GO_BACK = auto()  #: roll back to the best step; where the run has not ended, continue with half the learning rate


@dataclass(kw_only=True)
class EarlyStopping:
    """The state of a run's checks; valid JSON from the first check on."""

    first_loss: float | None = None  #: nats per token, at the first check; None before
    best_loss: float = inf
    best_step: int = 0
    checks_since_best: int = 0
    halvings: int = 0
    looked_at: int = -1  #: the step that was checked last, or rolled back to
    ended: bool = False
    validated_on: str = ""  #: a digest of the validation split

    @property
    def share(self) -> float:
        """The current learning rate over the initial one."""
        return float(0.5**self.halvings)

    @property
    def ended_early(self) -> bool:
        """Whether the run ended because nothing more was learned."""
        return self.halvings > MAX_HALVINGS

    def begin(self, validated_on: str) -> None:
        """Start again on another validation split, for example after texts were deleted: its losses do not compare."""
        self.first_loss, self.best_loss, self.checks_since_best, self.looked_at = None, inf, 0, -1
        self.validated_on = validated_on

    def check(self, step: int, loss: float) -> Verdict:
        """Record the validation loss (nats per token) after a step.

        Raises TrainingDiverged where the first loss is not finite: there is no step to roll back to.
        """
        if self.first_loss is None:
            if not isfinite(loss):
                raise TrainingDiverged(f"The initial loss is {loss}. Start from another adapter or the base model.")
            self.first_loss = loss
        self.looked_at = step
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.checks_since_best = loss, step, 0
            return Verdict.NEW_BEST
        self.checks_since_best += 1
        near = loss <= self.best_loss + DIVERGENCE * self.first_loss
        if isfinite(loss) and near and self.checks_since_best < PATIENCE:
            return Verdict.GO_ON
        return self.go_back()

    def go_back(self) -> Verdict:
        """Roll back and halve the learning rate; too many halvings end the run."""
        self.halvings += 1
        self.checks_since_best = 0
        self.looked_at = self.best_step
        self.ended = self.ended_early
        return Verdict.GO_BACK

    def end(self) -> Verdict:
        """All steps are done: the run ends with its best step."""
        self.looked_at, self.ended = self.best_step, True
        return Verdict.GO_BACK
