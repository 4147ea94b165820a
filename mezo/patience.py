"""When to stop: judged now and then by text that is not learned from (early stopping; Prechelt 1998).

A run that finds no better for some looks in a row goes back to the best that was seen, and on from there with half the
step size. After too many halvings it ends, with the best.
"""

from dataclasses import asdict, dataclass
from enum import Enum, auto
from math import inf, isfinite
from typing import Any, Self

from pocketllm.mezo.errors import TrainingDiverged


class Verdict(Enum):
    """What a look says of the step that it was taken after."""

    NEW_BEST = auto()
    GO_ON = auto()
    GO_BACK = auto()  #: to the best, and on from there with half the step size
    END = auto()  #: with the best


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a run goes on without a new best."""

    looks: int  #: without a new best, until the run goes back
    halvings: int  #: of the step size, until the run ends
    divergence: float = inf  #: parts of the run's first loss: so far above the best the run goes back at once


@dataclass(kw_only=True)
class Watch:
    """What the looks of a run have seen so far: with its rows, all that the run's future depends on."""

    first_loss: float | None = None  #: nats per token, at the first look; None before
    best_loss: float = inf
    best_step: int = 0
    checks_since_best: int = 0
    halvings: int = 0
    looked_at: int = -1  #: the step that was looked at last, or gone back to
    ended: bool = False

    @property
    def share(self) -> float:
        """The part of the step size that is left."""
        return 0.5**self.halvings

    def look(self, step: int, loss: float, patience: Patience) -> Verdict:
        """Take in the loss (nats per token) that the text kept aside has after a step.

        Raises TrainingDiverged when the very first one is no number: there is no best to go back to.
        """
        if self.best_loss == inf and not isfinite(loss):
            raise TrainingDiverged(f"The loss is {loss} to begin with. Start from another adapter, or the base.")
        if self.first_loss is None:
            self.first_loss = loss
        self.looked_at = step
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.checks_since_best = loss, step, 0
            return Verdict.NEW_BEST
        self.checks_since_best += 1
        near = loss <= self.best_loss + patience.divergence * self.first_loss
        if isfinite(loss) and near and self.checks_since_best < patience.looks:
            return Verdict.GO_ON
        return self.go_back(patience)

    def go_back(self, patience: Patience) -> Verdict:
        """Halve the step size: the caller goes back to the best, or ends with it, as this says."""
        self.halvings += 1
        self.checks_since_best = 0
        self.looked_at = self.best_step
        self.ended = self.halvings > patience.halvings
        return Verdict.END if self.ended else Verdict.GO_BACK

    def end(self) -> None:
        """The run has come to its end by itself; its best is what is kept."""
        self.looked_at, self.ended = self.best_step, True

    def to_json(self) -> dict[str, Any]:
        """For `from_json`; valid JSON from the first look on."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(**document)
