"""Promotion: a new adapter is served only if its held-out loss is lower, by more than the noise.

The candidate and the serving adapter are compared block by block on held-out text, new and old; the base model is
measured too, for the record. Three rules keep harmful text from promoting itself:

- If old text, or that of any one job, became worse, the candidate forgets, however much it learned of the new text.
- A held-out block that repeats training text (contamination.py) proves nothing. It can still show harm.
- Before there is old text, ordinary text that comes with the program takes its place: a first job on noise, or on text
  that the base model cannot read, makes it far worse, and nothing else would show that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from math import inf, sqrt
from typing import Any

from pocketllm.storage.tables import Outcome

#: Old text counts as forgotten beyond this many standard errors.
FORGOTTEN_ERRORS = 2.0
#: A first job may make ordinary text harder by this many nats per token. Rehearsal (rehearsal.py) keeps honest text far
#: below; noise, another alphabet or one sentence again and again exceed it (test_bad_text.py).
MAX_ORDINARY_RISE = 0.5


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference of two losses, with its standard error."""

    before: float  #: nats per token
    now: float
    standard_error: float | None  #: of the reduction; None with a single block

    @property
    def reduction(self) -> float:
        """Nats per token; positive is better."""
        return self.before - self.now

    @property
    def better(self) -> bool:
        """Whether the loss fell by more than its standard error."""
        return self.standard_error is not None and self.reduction > self.standard_error

    @property
    def worse(self) -> bool:
        """Whether the loss rose by more than its standard error."""
        return self.rise_errors > 1

    @property
    def rise_errors(self) -> float:
        """The rise in standard errors; 0 where the loss did not rise, or the error is unknown."""
        if self.standard_error is None or self.reduction >= 0:
            return 0.0
        return -self.reduction / self.standard_error if self.standard_error else inf

    def to_json(self) -> dict[str, Any]:
        """The numbers, in nats per token."""
        return {
            "before": self.before,
            "now": self.now,
            "reduction": self.reduction,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationVerdict:
    """The comparisons on held-out text, and what follows from them."""

    overall: Comparison  #: with the serving adapter, on blocks that do not repeat training text
    old: Comparison | None  #: the same on old text alone; None where there is none
    worst: Comparison | None = None  #: the part of the old text that became worse most surely
    base: Comparison | None  #: with the base model; None where the base model is serving
    ordinary: Comparison | None = None  #: with the base model on ordinary text; None where there is old text
    blocks: int  #: the number of held-out blocks
    repeats: int = 0  #: the number of these that repeat training text

    @property
    def repetitive(self) -> bool:
        """Whether fewer than two blocks are left without repeats; then `overall` is of all blocks."""
        return self.repeats > 0 and self.blocks - self.repeats < 2

    @property
    def forgets(self) -> bool:
        """Whether old text became worse by more than FORGOTTEN_ERRORS."""
        return any(part.rise_errors > FORGOTTEN_ERRORS for part in (self.old, self.worst) if part)

    @property
    def spoils(self) -> bool:
        """Whether ordinary text became worse by more than MAX_ORDINARY_RISE."""
        return self.ordinary is not None and -self.ordinary.reduction > MAX_ORDINARY_RISE

    @property
    def outcome(self) -> Outcome:
        """LEARNED only if the loss fell by more than its standard error, and nothing is forgotten or spoiled."""
        if self.overall.worse or self.forgets or self.spoils:
            return Outcome.WORSE
        return Outcome.LEARNED if self.overall.better and not self.repetitive else Outcome.NO_PROOF

    @property
    def sentence(self) -> str:
        """What to tell the owner."""
        if self.overall.standard_error is None:
            return f"{self.outcome}: there is too little held-out text to tell; add more text"
        parts = [f"{self.outcome}: against what is served the held-out loss {_change(self.overall)}"]
        if self.repeats:
            proof = "which proves nothing" if self.repetitive else "which was left out"
            parts.append(f"{self.repeats} of {self.blocks} held-out blocks repeat what was learned, {proof}")
        if self.old is not None and self.old.standard_error is not None:
            parts.append(f"on old text it {_change(self.old)}")
            if self.worst is not None and self.worst.rise_errors > self.old.rise_errors:
                parts[-1] += f", on one job's it {_change(self.worst)}"
            parts[-1] += ", which is forgetting" if self.forgets else ""
        if self.base is not None:
            parts.append(f"against the base model it {_change(self.base)}")
        if self.ordinary is not None:
            spoiled = f", more than the {MAX_ORDINARY_RISE:g} that a first job may" if self.spoils else ""
            parts.append(f"on ordinary text it {_change(self.ordinary)}{spoiled}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "outcome": self.outcome.value,
            "overall": self.overall.to_json(),
            "old": self.old and self.old.to_json(),
            "worst": self.worst and self.worst.to_json(),
            "base": self.base and self.base.to_json(),
            "ordinary": self.ordinary and self.ordinary.to_json(),
            "blocks": self.blocks,
            "repeats": self.repeats,
        }


def evaluate(
    before: Sequence[float],
    now: Sequence[float],
    weights: Sequence[int],
    *,
    old_blocks: Sequence[int] = (),
    base: Sequence[float] | None = None,
    repeats: Sequence[bool] | None = None,
    ordinary: Comparison | None = None,
) -> EvaluationVerdict:
    """Compare each held-out block's loss with the serving adapter's. weights: the blocks' numbers of targets.

    old_blocks: how many of the blocks, at the end, belong to each part of old text. base: the base model's losses, if
    it is not serving. repeats: which blocks repeat training text; None: none. ordinary: see EvaluationVerdict.
    """

    def compared(part: slice) -> Comparison:
        return compare(before[part], now[part], weights[part])

    bounds = list(accumulate(old_blocks, initial=len(weights) - sum(old_blocks)))
    parts = [compared(slice(start, end)) for start, end in pairwise(bounds)]
    of_old = compared(slice(bounds[0], None)) if parts else None
    repeats = [False] * len(weights) if repeats is None else repeats
    proving = [not repeat for repeat in repeats]
    counted = proving if sum(proving) > 1 else [True] * len(weights)
    candidate, tokens = list(compress(now, counted)), list(compress(weights, counted))
    return EvaluationVerdict(
        overall=compare(list(compress(before, counted)), candidate, tokens),
        old=of_old,
        worst=max(parts, key=lambda part: part.rise_errors, default=None),
        base=None if base is None else compare(list(compress(base, counted)), candidate, tokens),
        ordinary=ordinary,
        blocks=len(proving),
        repeats=len(proving) - sum(proving),
    )


def compare(before: Sequence[float], now: Sequence[float], weights: Sequence[int]) -> Comparison:
    """Compare each block's loss before and now.

    Pairing removes the blocks' difficulty from the error: only differences between their changes count.
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
