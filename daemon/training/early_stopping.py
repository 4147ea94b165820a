"""Early stopping (Prechelt 1998) on the validation split.

After PATIENCE checks without a new best, a run rolls back to its best step and continues with half the learning rate.
After MAX_HALVINGS it ends with its best step. A run that comes to its last step keeps that one unless the loss is
worse than at the best step by more than its standard error.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum, auto
from math import inf, isfinite
from typing import Any, Self

from pocketllm.daemon.evaluation.promotion import compare, mean_loss
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
    GO_BACK = auto()  #: roll back to the best step, and continue with half the learning rate
    END = auto()  #: roll back to the best step, and end


@dataclass(kw_only=True)
class EarlyStopping:
    """The state of a run's checks."""

    first_loss: float | None = None  #: nats per token, at the first check; None before
    best_loss: float = inf
    best_losses: list[float] = field(default_factory=list)  #: of each validation block at the best step
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

    def begin(self, validated_on: str) -> None:
        """Start again on another validation split, for example after texts were deleted: its losses do not compare."""
        self.first_loss, self.best_loss, self.best_losses = None, inf, []
        self.checks_since_best, self.looked_at = 0, -1
        self.validated_on = validated_on

    def check(self, step: int, losses: Sequence[float], weights: Sequence[int]) -> Verdict:
        """Record the loss of each validation block (nats per token) after a step. weights: the blocks' targets.

        Raises TrainingDiverged where the first loss is not finite: there is no step to roll back to.
        """
        loss = mean_loss(losses, weights)
        if self.first_loss is None:
            if not isfinite(loss):
                raise TrainingDiverged(f"The loss is {loss} to begin with. Start from another adapter, or the base.")
            self.first_loss = loss
        self.looked_at = step
        if loss < self.best_loss:
            return self._new_best(step, loss, losses)
        self.checks_since_best += 1
        near = loss <= self.best_loss + DIVERGENCE * self.first_loss
        if isfinite(loss) and near and self.checks_since_best < PATIENCE:
            return Verdict.GO_ON
        return self.go_back()

    def check_last(self, step: int, losses: Sequence[float], weights: Sequence[int]) -> Verdict:
        """The same after the last step, which is NEW_BEST unless it is worse by more than the standard error.

        The lowest of many noisy losses is partly luck, and the last step has the lowest learning rate.
        """
        if len(self.best_losses) > 1:
            compared = compare(self.best_losses, losses, weights)
            if isfinite(compared.now) and not compared.worse:
                return self._new_best(step, compared.now, losses)
        return self.check(step, losses, weights)

    def _new_best(self, step: int, loss: float, losses: Sequence[float]) -> Verdict:
        self.best_step, self.best_loss, self.best_losses = step, loss, list(losses)
        self.looked_at, self.checks_since_best = step, 0
        return Verdict.NEW_BEST

    def go_back(self) -> Verdict:
        """Halve the learning rate. Returns GO_BACK, or END after too many halvings."""
        self.halvings += 1
        self.checks_since_best = 0
        self.looked_at = self.best_step
        self.ended = self.halvings > MAX_HALVINGS
        return Verdict.END if self.ended else Verdict.GO_BACK

    def end(self) -> Verdict:
        """All steps are done: the run ends with its best step."""
        self.looked_at, self.ended = self.best_step, True
        return Verdict.END

    def to_json(self) -> dict[str, Any]:
        """For `from_json`; valid JSON from the first check on."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(**document)
