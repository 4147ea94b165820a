"""The publish gate: a new adapter is served only if held-out text proves it better by more than the noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from pocketllm.storage.tables import Outcome


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The paired comparison: how much the held-out loss fell, and how sure that is."""

    reduction: float  #: nats per token, positive is better
    standard_error: float | None  #: None where one block alone says nothing about the spread

    @property
    def outcome(self) -> Outcome:
        """Learned only if the reduction is above its standard error."""
        if self.standard_error is not None and self.reduction > self.standard_error:
            return Outcome.LEARNED
        return Outcome.NO_PROOF

    @property
    def sentence(self) -> str:
        """What to tell the owner."""
        if self.standard_error is None:
            return f"{self.outcome}: there is too little held-out text to tell; add more text"
        return (
            f"{self.outcome}: the held-out loss fell by {self.reduction:.4f} nats per token, "
            f"with a standard error of {self.standard_error:.4f}"
        )


def judge(before: Sequence[float], now: Sequence[float], weights: Sequence[int]) -> Judgement:
    """Compare each held-out block's loss with what it was; weights are the blocks' tokens.

    Pairing takes out how hard the blocks are: only how differently they changed counts as noise.
    """
    falls = [b - n for b, n in zip(before, now, strict=True)]
    total = sum(weights)
    reduction = sum(fall * weight for fall, weight in zip(falls, weights, strict=True)) / total
    count = len(falls)
    if count < 2:
        return Judgement(reduction=reduction, standard_error=None)
    square = sum((weight * (fall - reduction)) ** 2 for fall, weight in zip(falls, weights, strict=True))
    return Judgement(reduction=reduction, standard_error=sqrt(square * count / (count - 1)) / total)
