"""The publish gate: a new adapter is served only if held-out text proves it better, by more than the noise.

Compared are the candidate and what is served, block by block, on text that nobody has learned from: the new text's
part of it, and the old text's, which must not be forgotten; and for the record the base model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from pocketllm.storage.tables import Outcome

#: Old text may become worse by as many standard errors before it counts as forgotten.
FORGOTTEN_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much a loss fell, block by block, and how sure that is."""

    before: float  #: nats per token
    now: float
    standard_error: float | None  #: of the fall; None where one block alone says nothing about the spread

    @property
    def reduction(self) -> float:
        """Nats per token, positive is better."""
        return self.before - self.now

    @property
    def better(self) -> bool:
        """Whether the fall is more than noise."""
        return self.standard_error is not None and self.reduction > self.standard_error

    @property
    def worse(self) -> bool:
        """Whether there is a rise that is more than noise."""
        return self.standard_error is not None and -self.reduction > self.standard_error

    def to_json(self) -> dict[str, Any]:
        """The numbers, in nats per token."""
        return {
            "before": self.before,
            "now": self.now,
            "reduction": self.reduction,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the held-out text says."""

    overall: Comparison  #: with what is served
    old: Comparison | None  #: the same on old text alone; None where there is none
    base: Comparison | None  #: with the base model; None where that is what is served

    @property
    def forgets(self) -> bool:
        """Whether old text has become worse by more than noise explains."""
        if self.old is None or self.old.standard_error is None:
            return False
        return -self.old.reduction > FORGOTTEN_ERRORS * self.old.standard_error

    @property
    def outcome(self) -> Outcome:
        """Learned only if the loss fell by more than its standard error, and nothing old is forgotten."""
        if self.overall.worse or self.forgets:
            return Outcome.WORSE
        return Outcome.LEARNED if self.overall.better else Outcome.NO_PROOF

    @property
    def sentence(self) -> str:
        """What to tell the owner."""
        if self.overall.standard_error is None:
            return f"{self.outcome}: there is too little held-out text to tell; add more text"
        parts = [f"{self.outcome}: against what is served the held-out loss {_change(self.overall)}"]
        if self.old is not None and self.old.standard_error is not None:
            forgotten = ", which is forgetting" if self.forgets else ""
            parts.append(f"on old text it {_change(self.old)}{forgotten}")
        if self.base is not None:
            parts.append(f"against the base model it {_change(self.base)}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "outcome": self.outcome.value,
            "overall": self.overall.to_json(),
            "old": self.old and self.old.to_json(),
            "base": self.base and self.base.to_json(),
        }


def judge(
    before: Sequence[float],
    now: Sequence[float],
    weights: Sequence[int],
    *,
    old_blocks: int = 0,
    base: Sequence[float] | None = None,
) -> Judgement:
    """Judge by each held-out block's loss with what is served, and now; weights are the blocks' tokens.

    old_blocks: how many of them, at the end, are of old text. base: the losses with the base model, where that is not
    what is served.
    """
    first_old = len(weights) - old_blocks
    of_old = compare(before[first_old:], now[first_old:], weights[first_old:]) if old_blocks else None
    with_base = None if base is None else compare(base, now, weights)
    return Judgement(overall=compare(before, now, weights), old=of_old, base=with_base)


def compare(before: Sequence[float], now: Sequence[float], weights: Sequence[int]) -> Comparison:
    """Compare each block's loss with what it was.

    Pairing takes out how hard the blocks are: only how differently they changed counts as noise.
    """
    total = sum(weights)
    falls = [b - n for b, n in zip(before, now, strict=True)]
    reduction = _mean(falls, weights)
    count = len(falls)
    error = None
    if count > 1:
        square = sum((weight * (fall - reduction)) ** 2 for fall, weight in zip(falls, weights, strict=True))
        error = sqrt(square * count / (count - 1)) / total
    return Comparison(before=_mean(before, weights), now=_mean(now, weights), standard_error=error)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _change(comparison: Comparison) -> str:
    verb = "fell" if comparison.reduction >= 0 else "rose"
    error = "" if comparison.standard_error is None else f" (standard error {comparison.standard_error:.4f})"
    return f"{verb} by {abs(comparison.reduction):.4f} nats per token{error}"
