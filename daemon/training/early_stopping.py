"""Early stopping (Prechelt 1998), by the loss on text of the job that is not learned from.

A run that finds no better for some checks in a row goes back to the best that was seen, and on from there with half the
rate. After too many halvings it ends, with the best.
"""

from dataclasses import asdict, dataclass
from enum import Enum, auto
from math import inf, isfinite
from typing import Any, Self

from pocketllm.engine.errors import TrainingDiverged

#: Checks without a new best until a run goes back: random directions make their way by luck, and a batch is no text.
PATIENCE = 3
#: Halvings of the rate until a run ends.
MAX_HALVINGS = 3
#: All checks are on the same text, so a loss this far above the best, as a part of the first, is no accident.
DIVERGENCE = 0.1


class Verdict(Enum):
    """What a check says of the step that it was made after."""

    NEW_BEST = auto()
    GO_ON = auto()
    GO_BACK = auto()  #: to the best, and on from there with half the rate
    END = auto()  #: with the best


@dataclass(kw_only=True)
class EarlyStopping:
    """What the checks of a run have seen so far."""

    first_loss: float | None = None  #: nats per token, at the first check; None before
    best_loss: float = inf
    best_step: int = 0
    checks_since_best: int = 0
    halvings: int = 0
    looked_at: int = -1  #: the step that was checked last, or gone back to
    ended: bool = False
    validated_on: str = ""  #: names the text that the checks are on

    @property
    def share(self) -> float:
        """The part of the rate that is left."""
        return float(0.5**self.halvings)

    def begin(self, validated_on: str) -> None:
        """Check on this text from now on: losses on another, of which some was deleted meanwhile, say nothing of it."""
        self.first_loss, self.best_loss, self.checks_since_best, self.looked_at = None, inf, 0, -1
        self.validated_on = validated_on

    def check(self, step: int, loss: float) -> Verdict:
        """Take in the validation loss (nats per token) after a step.

        Raises TrainingDiverged when the very first one is no number: there is no best to go back to.
        """
        if self.first_loss is None:
            if not isfinite(loss):
                raise TrainingDiverged(f"The loss is {loss} to begin with. Start from another adapter, or the base.")
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
        """Halve the rate: the caller goes back to the best, or ends with it, as this says."""
        self.halvings += 1
        self.checks_since_best = 0
        self.looked_at = self.best_step
        self.ended = self.halvings > MAX_HALVINGS
        return Verdict.END if self.ended else Verdict.GO_BACK

    def end(self) -> Verdict:
        """The run has come to its end by itself; its best is what is kept."""
        self.looked_at, self.ended = self.best_step, True
        return Verdict.END

    def to_json(self) -> dict[str, Any]:
        """For `from_json`; valid JSON from the first check on."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(**document)
