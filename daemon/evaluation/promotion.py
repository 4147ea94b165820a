"""Promotion: a new adapter is served only if its held-out loss on new text is lower, by more than the noise.

The candidate and the serving adapter are compared text by text (a text's blocks are alike, and so one observation), by
Student's t test, one-sided; unequal lengths and heavy tails make it more careful (Ibragimov and Mueller, "t-statistic
based correlation and heterogeneity robust inference", 2010). Rules keep harmful text from promoting itself:

- If new text, or the old text of any one job, became significantly worse, the candidate is not served, however much it
  learned elsewhere. The more parts are looked at, the surer a single one must be (`cutoff_of`).
- A held-out block that repeats training text (contamination.py) proves nothing. It can still show harm.
- Each job of a chain that is tested on the same held-out text again spends a part of the chain's chance of error
  (`level_of`).
- Before there is old text, ordinary text that comes with the program takes its place: a first job on noise, or on text
  that the base model cannot read, makes it far worse, and nothing else would show that.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from math import atan, cos, pi, sin, sqrt
from typing import Any

from pocketllm.storage.tables import Outcome

#: The greatest chance of noise that still counts, of a chain's first job. The promise is 0.05; this leaves room for
#: the chain's other jobs (`level_of`), or for what the test assumes.
SIGNIFICANCE = 0.04
#: A gain in nats per token that is worth having. Texts that would not show it are too few to tell.
WORTHWHILE = 0.1
#: A difference in nats per token that may come from rounding alone.
ROUNDING = 1e-9
#: A text of this many targets counts half as much as an endless one (the best of 8 to 400 in bench.promotion).
HALF_WEIGHT = 64
#: A first job may make ordinary text harder by this many nats per token. Rehearsal (rehearsal.py) keeps honest text far
#: below; noise, another alphabet or one sentence again and again exceed it (test_bad_text.py).
MAX_ORDINARY_RISE = 0.5


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference of two losses, with its standard error."""

    before: float  #: nats per token
    now: float
    standard_error: float | None  #: of the reduction; None with a single text
    texts: int

    @property
    def reduction(self) -> float:
        """Nats per token; positive is better."""
        return self.before - self.now

    @property
    def rise_chance(self) -> float:
        """The probability that noise alone makes such a rise, or a greater one."""
        return self.chance(-self.reduction)

    def chance(self, change: float) -> float:
        """The probability that noise alone makes such a change, or a greater one; 1 with a single text, or copies."""
        if self.standard_error is None:
            return 1.0
        if self.standard_error <= ROUNDING:  # nothing changed; or all by the same, which proves nothing
            return 0.0 if change > ROUNDING >= abs(self.reduction) else 1.0
        return t_tail(change / self.standard_error, self.texts - 1)


@dataclass(frozen=True, kw_only=True)
class EvaluationVerdict:
    """The comparisons on held-out text, and what follows from them."""

    new: Comparison  #: with the serving adapter, on blocks of new text that do not repeat training text
    old: Comparison | None  #: with the serving adapter on old text; None where there is none
    worst: Comparison | None = None  #: the part of the old text that became worse most surely
    level: float = SIGNIFICANCE  #: the greatest chance of noise that counts as a gain; see `level_of`
    cutoff: float = SIGNIFICANCE  #: the greatest chance of a part's rise that is significant; see `cutoff_of`
    base: Comparison | None  #: with the base model; None where the base model is serving
    ordinary: Comparison | None = None  #: with the base model on ordinary text; None where there is old text
    blocks: int  #: the number of held-out blocks
    repeats: int = 0  #: the number of these that repeat training text
    repetitive: bool = False  #: whether fewer than two new texts are left without repeats; then `new` is of all blocks

    @property
    def forgets(self) -> bool:
        """Whether old text became significantly worse."""
        return self.worst is not None and self.worst.rise_chance <= self.cutoff

    @property
    def spoils(self) -> bool:
        """Whether ordinary text became worse by more than MAX_ORDINARY_RISE."""
        return self.ordinary is not None and -self.ordinary.reduction > MAX_ORDINARY_RISE

    @property
    def outcome(self) -> Outcome:
        """LEARNED only if new text became significantly better, and nothing is forgotten or spoiled."""
        if self.new.rise_chance <= self.cutoff or self.forgets or self.spoils:
            return Outcome.WORSE
        if self.repetitive:
            return Outcome.NO_PROOF
        if self.new.chance(self.new.reduction) <= self.level:
            return Outcome.LEARNED
        return Outcome.NO_PROOF if self.new.chance(WORTHWHILE) <= self.level else Outcome.TOO_LITTLE

    @property
    def sentence(self) -> str:
        """What to tell the owner."""
        parts = [f"{self.outcome}: compared with the serving model, held-out loss on new text {_change(self.new)}"]
        if self.outcome is Outcome.TOO_LITTLE:
            parts.append("this may be chance, and more text can tell")
        if self.repeats:
            proof = "prove nothing" if self.repetitive else "were left out"
            parts.append(f"{self.repeats} of {self.blocks} held-out blocks repeat training text and {proof}")
        if self.old is not None and self.old.standard_error is not None:
            parts.append(f"on old text it {_change(self.old)}")
            if self.worst is not None and self.worst.reduction < self.old.reduction:
                parts[-1] += f", on one job's text it {_change(self.worst)}"
            parts[-1] += ", which is forgetting" if self.forgets else ""
        if self.base is not None:
            parts.append(f"compared with the base model, it {_change(self.base)}")
        if self.ordinary is not None:
            spoiled = f", more than the {MAX_ORDINARY_RISE:g} allowed for a first job" if self.spoils else ""
            parts.append(f"on ordinary text it {_change(self.ordinary)}{spoiled}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        parts = {name: getattr(self, name) for name in ("old", "worst", "base", "ordinary")} | {"overall": self.new}
        numbers = {"outcome": self.outcome.value, "blocks": self.blocks, "repeats": self.repeats}
        return numbers | {name: part and asdict(part) | {"reduction": part.reduction} for name, part in parts.items()}


def evaluate(
    before: Sequence[float],
    now: Sequence[float],
    weights: Sequence[int],
    *,
    texts: Sequence[Any] | None = None,
    old_blocks: Sequence[int] = (),
    base: Sequence[float] | None = None,
    repeats: Sequence[bool] | None = None,
    ordinary: Comparison | None = None,
    link: int = 1,
    again: bool = False,
) -> EvaluationVerdict:
    """Compare each held-out text's loss with the serving adapter's. weights: the blocks' numbers of targets.

    texts: the number of each block's text; None: each block is a text. old_blocks: how many of the blocks, at the end,
    belong to each part of old text. base: the base model's losses, if it is not serving. repeats: which blocks repeat
    training text; None: none. ordinary: see EvaluationVerdict. link, again: see `level_of`.
    """
    texts = range(len(weights)) if texts is None else texts
    bounds = list(accumulate(old_blocks, initial=len(weights) - sum(old_blocks)))
    counted = proving(texts[: bounds[0]], repeats)

    def compared(at: Sequence[int], rival: Sequence[float] = before) -> Comparison:
        return compare([rival[i] for i in at], [now[i] for i in at], [weights[i] for i in at], [texts[i] for i in at])

    parts = [compared(range(start, end)) for start, end in pairwise(bounds)]
    new, level = compared(counted), level_of(link, again=again)
    return EvaluationVerdict(
        new=new,
        old=compared(range(bounds[0], len(weights))) if parts else None,
        worst=min(parts, key=lambda part: part.rise_chance, default=None),
        level=level,
        cutoff=cutoff_of([part.rise_chance for part in (new, *parts) if part.standard_error is not None], level),
        base=None if base is None else compared(counted, base),
        ordinary=ordinary,
        blocks=len(weights),
        repeats=sum(repeats or ()),
        repetitive=len(counted) == bounds[0] and any((repeats or ())[: bounds[0]]),
    )


def proving(texts: Sequence[Any], repeats: Sequence[bool] | None) -> list[int]:
    """The places of the blocks that do not repeat training text; all where fewer than two texts have such blocks.

    texts: of the blocks of new text. repeats: see `evaluate`.
    """
    counted = [place for place in range(len(texts)) if not (repeats and repeats[place])]
    return counted if len({texts[place] for place in counted}) > 1 else list(range(len(texts)))


def compare(
    before: Sequence[float], now: Sequence[float], weights: Sequence[int], texts: Sequence[Any] | None = None
) -> Comparison:
    """Compare the losses before and now, text by text. weights: the blocks' numbers of targets; texts: see `evaluate`.

    Pairing removes the texts' difficulty from the error: only differences between their changes count.
    """
    sums: dict[object, list[float]] = {}
    for text, weight, b, n in zip(texts or range(len(weights)), weights, before, now, strict=True):
        of_text = sums.setdefault(text, [0.0, 0.0, 0.0])
        of_text[:] = of_text[0] + weight, of_text[1] + weight * b, of_text[2] + weight * n
    # Each text's mean losses, multiplied by what it counts.
    total = sum(count / (count + HALF_WEIGHT) for count, _, _ in sums.values())
    of_before, of_now = ([of[k] / (of[0] + HALF_WEIGHT) for of in sums.values()] for k in (1, 2))
    falls = [b - n for b, n in zip(of_before, of_now, strict=True)]
    count, mean = len(falls), sum(falls) / len(falls)
    error = None
    if count > 1:
        # Not of the deviations from the weighted mean: where one text has most of the weight, they are too small.
        error = sqrt(sum((fall - mean) ** 2 for fall in falls) * count / (count - 1)) / total
    return Comparison(before=sum(of_before) / total, now=sum(of_now) / total, standard_error=error, texts=count)


def level_of(link: int, *, again: bool = False) -> float:
    """The greatest chance of noise that counts for a job of a chain that is tested on the same held-out text.

    link: 1 and the number of the chain's earlier jobs that were not called 'learned'. All levels add up to 0.048, so
    that a chain calls nothing 'learned' (or 'worse') by mistake with at most this chance, whatever its jobs have in
    common; one that was rightly called 'learned' gives its level back (Tian and Ramdas, "Online control of the
    familywise error rate", 2021). Of the divisions tried by simulation, this gives a chain's first three jobs the most
    power: halves, squares and a smaller first level find less by the second job, and by the third.

    again: the job judges a candidate again, on more text. Then most of the evidence is that of the look before, and
    levels may fall more slowly: a group-sequential test by nominal levels (Lan and DeMets, "Discrete sequential
    boundaries for clinical trials", 1983). The exponent is the least that keeps all looks together below 0.05, up to
    the next job (bench.promotion).
    """
    return float(SIGNIFICANCE / link ** (1.75 if again else 3))


def cutoff_of(chances: Sequence[float], level: float = SIGNIFICANCE) -> float:
    """The greatest of these chances that is significant, by Benjamini and Hochberg; below 0 if none is."""
    ranked = enumerate(sorted(chances), 1)
    return max((chance for rank, chance in ranked if chance * len(chances) <= level * rank), default=-1.0)


def t_tail(t: float, degrees: int) -> float:
    """The probability that Student's t with these degrees of freedom is above t (Abramowitz and Stegun 26.7.3-4)."""
    angle, odd = atan(t / sqrt(degrees)), degrees % 2
    term, series = cos(angle) if odd else 1.0, 0.0
    for number in range(2 + odd, degrees + 1, 2):
        series += term
        term *= (number - 1) / number * cos(angle) ** 2
    within = sin(angle) * series
    return (1 - (2 / pi * (angle + within) if odd else within)) / 2


def _change(comparison: Comparison) -> str:
    verb = "fell" if comparison.reduction >= 0 else "rose"
    error = "" if comparison.standard_error is None else f" (standard error {comparison.standard_error:.4f})"
    return f"{verb} by {abs(comparison.reduction):.4f} nats per token{error}"
