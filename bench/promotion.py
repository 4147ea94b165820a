"""How often promotion is wrong, by simulation through the worker's own `evaluate` and the store's own choice of texts.

python -m bench.promotion [--quick]

false_learned: of jobs that changed nothing, the part that is called 'learned'; false_forgets: the part that is called
'worse'. Each is that of the worst number of held-out texts, out of 2 to 40, over 1 to 20 parts of old text. power_400,
power_1000 and power_4000: how often a job on new text of so many words, which gains 0.3 nats per token, is called
'learned'.

false_learned_chain and false_forgets_chain: of chains of ten jobs that change nothing but by noise, each from where the
one before it has ended, the part in which at least one is called so; the worst number of held-out texts. A job that is
called 'learned' is served, and the next ones are compared with it. false_learned_growing, false_forgets_growing: where
the text grows by as much as makes a job in every three jobs, the part of these threes in which one is called so.

power_1000_by_2 and power_1000_by_3: how often a chain on 1,000 words, whose first job gains 0.3 nats and each further
one 0.1 more, has been called 'learned' by its second and its third job; power_1000_more: how often a job that gains 0.1
nats after one that was called 'learned' is.

false_learned_waiting: of candidates that changed nothing, and wait for evidence, the part that is ever called 'learned'
before the next job is due, of the worst number of texts at first, over 1 to 12 texts a night. power_by_2, power_by_3:
how often a gain of 0.3 nats is found by the second and the third night, of who writes 350 words a day. The tables show
the first verdict's power by the part that is held out, where what is won follows the curve of bench.nights; and after
how many nights something is served, by the words that make a job. All that is random comes from a fixed seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.common.harness import Limit, finish, parser, start, table
from bench.nights.device import Known, Lesson
from pocketllm.daemon.evaluation.promotion import EvaluationVerdict, evaluate
from pocketllm.daemon.scheduling.night import LEAST_WORTH
from pocketllm.storage.repositories.texts import MAX_HELD_OUT_SHARE, NewText, _Weighed, is_held_out, to_hold_out
from pocketllm.storage.tables import Outcome

LIMITS = {
    "false_learned": Limit(at_most=0.05),
    "false_forgets": Limit(at_most=0.05),
    "power_1000": Limit(at_least=0.8),
    "false_learned_chain": Limit(at_most=0.05),
    "false_forgets_chain": Limit(at_most=0.05),
    "false_learned_growing": Limit(at_most=0.05),
    "false_forgets_growing": Limit(at_most=0.05),
    "false_learned_waiting": Limit(at_most=0.05),
    "power_by_2": Limit(at_least=0.95),
    "power_by_3": Limit(at_least=0.99),
}
TEXTS, PARTS = (2, 3, 5, 10, 20, 40), (1, 5, 20)
WORDS = (400, 1000, 4000)
GAIN, MORE = 0.3, 0.1
CHAIN, CHAIN_PARTS = 10, 5
#: Jobs of a chain whose text grows.
GROWN = 9
#: New texts a night, and those that make a job; words a day; the settings that the tables compare.
A_NIGHT, A_JOB, A_DAY = (1, 4, 12), 18, 350
SHARES, FIRST_WORDS, TRIGGERS = (0.3, 0.4, 0.5, 0.6), (600, 1000, 1500), (500, 700, 1000, 1300)

#: How a text's change differs from the mean change, in nats per token: by something of the text's own, and by noise
#: that falls with the root of its tokens. Measured with SmolLM2 and an exact job of 40 steps on 15 short notes of a
#: diary: on 50 more of its notes (median of 63 tokens) the mean gain was 0.52, the standard deviation between notes
#: 0.28 (0.28 of the shorter half, 0.15 of the longer), kurtosis 4.7, skewness 1.1; on 40 notes by somebody else, which
#: gained 0.05, it was 0.16 (0.13 and 0.18), kurtosis 2.8. Of 35 blocks of 64 tokens of one long text it was 0.25, and
#: neighbours were not alike (autocorrelation -0.23, 0.10, 0.09, -0.15). The gain's spread is taken, also where nothing
#: is gained.
BETWEEN_TEXTS, PER_TOKEN = 0.1, 2.0
MEDIAN_WORDS, LENGTH_SIGMA, TOKENS_A_WORD, BLOCK = 45, 0.6, 1.35, 64
#: The degrees of freedom of a text's own change, and of its blocks' noise: kurtosis 9.
TAILS = 5
#: The correlation of the texts of different parts.
BETWEEN_PARTS = 0.3

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of so many simulated jobs, those with each outcome that matters."""

    trials: int
    learned: int
    worse: int


def lengths(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    """The words of short notes."""
    words = random.lognormal(np.log(MEDIAN_WORDS), LENGTH_SIGMA, count)
    return np.maximum(words, 3).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out blocks, and by how much a job lowers the loss of each."""

    before: Array
    fell: Array
    weights: Sequence[int]
    texts: Sequence[tuple[int, int]]
    old_blocks: Sequence[int]

    def of_first(self, count: int) -> NDArray[np.bool_]:
        """Which blocks are of old text, or of the first so many new ones."""
        return np.array([part > 0 or text < count for part, text in self.texts])

    def first(self, count: int) -> HeldOut:
        """The old text, and the first so many new ones."""
        there = self.of_first(count)
        weights = np.array(self.weights)[there].tolist()
        texts = [text for text, kept in zip(self.texts, there, strict=True) if kept]
        return replace(self, before=self.before[there], fell=self.fell[there], weights=weights, texts=texts)

    def verdict(self, fell: Array, *, link: int = 1, again: bool = False) -> EvaluationVerdict:
        """The verdict on a job that lowers the losses by this. link, again: see `level_of`."""
        before, now = self.before.tolist(), (self.before - fell).tolist()
        of_text, old = self.texts, self.old_blocks
        return evaluate(before, now, self.weights, texts=of_text, old_blocks=old, link=link, again=again)


def blocks_of(words: int) -> list[int]:
    """The tokens of each block of a text."""
    total = max(2, int(TOKENS_A_WORD * words))
    return [min(BLOCK, total - first) for first in range(0, total, BLOCK)]


def held_out(random: np.random.Generator, parts: Sequence[NDArray[np.int64]], *, gain: float) -> HeldOut:
    """A job that changes new text by `gain` and old text not at all. parts: words of each text."""
    most = max(map(len, parts))
    common = effects(random, most)
    before, falls, weights, texts, blocks = [], [], [], [], []
    for number, words in enumerate(parts):
        own = effects(random, most)
        change = np.sqrt(BETWEEN_PARTS) * common + np.sqrt(1 - BETWEEN_PARTS) * own
        change = BETWEEN_TEXTS * change[: len(words)] + (0 if number else gain)
        by_text = [blocks_of(int(count)) for count in words]
        counts = [count for its in by_text for count in its]
        owners = [text for text, its in enumerate(by_text) for _ in its]
        falls.append(change[owners] + PER_TOKEN / np.sqrt(counts) * effects(random, len(counts)))
        before.append(random.normal(4, 0.5, len(counts)))
        weights += counts
        texts += [(number, text) for text in owners]
        blocks.append(len(counts))
    of_all = {"before": np.concatenate(before), "fell": np.concatenate(falls)}
    return HeldOut(**of_all, weights=weights, texts=texts, old_blocks=blocks[1:])


def outcome(random: np.random.Generator, parts: Sequence[NDArray[np.int64]], *, gain: float) -> Outcome:
    """What is said of such a job."""
    found = held_out(random, parts, gain=gain)
    return found.verdict(found.fell).outcome


def chain(
    random: np.random.Generator, parts: Sequence[NDArray[np.int64]], gains: Sequence[float], *, growing: int = 0
) -> list[Outcome]:
    """What is said of a chain's jobs. gains: of each, beyond what the one before it has learned.

    growing: the number of new texts that make a job; each further job has a third of it more.
    """
    outcomes: list[Outcome] = []
    fell: Array | float = 0.0
    link = begun = 1
    for number, gain in enumerate(gains, 1):
        if growing and number == begun + 3:  # as the store does
            link, begun = 1, number
        found = held_out(random, parts, gain=gain)
        fell = fell + found.fell
        there = growing * (number + 2) // 3 or len(parts[0])
        outcomes.append(found.first(there).verdict(fell[found.of_first(there)], link=link).outcome)
        link += outcomes[-1] is not Outcome.LEARNED
        if outcomes[-1] is Outcome.LEARNED:  # it is served
            fell = 0.0
    return outcomes


def effects(random: np.random.Generator, count: int) -> Array:
    """Random numbers of variance 1 with heavy tails."""
    found: Array = random.standard_t(TAILS, count) / np.sqrt(TAILS / (TAILS - 2))
    return found


def false_rates(texts: int, parts: int, *, trials: int, seed: int = 0) -> Counts:
    """What is said of jobs that change nothing, on this many held-out texts of each part."""
    random = np.random.default_rng((seed, texts, parts))
    found = [outcome(random, [lengths(random, texts) for _ in range(1 + parts)], gain=0.0) for _ in range(trials)]
    return Counts(trials=trials, learned=found.count(Outcome.LEARNED), worse=found.count(Outcome.WORSE))


def false_chains(texts: int, *, trials: int, seed: int = 0) -> Counts:
    """How many chains of jobs that change nothing but by noise have such an outcome, on this many held-out texts."""
    random = np.random.default_rng((seed, texts, CHAIN_PARTS, CHAIN))
    found = [
        chain(random, [lengths(random, texts) for _ in range(1 + CHAIN_PARTS)], [0.0] * CHAIN) for _ in range(trials)
    ]
    learned, worse = (sum(which in one for one in found) for which in (Outcome.LEARNED, Outcome.WORSE))
    return Counts(trials=trials, learned=learned, worse=worse)


def false_growing(texts: int, *, trials: int, seed: int = 0) -> Counts:
    """The same of each part of a growing text that would make a job by itself, with this many held-out texts.

    Three jobs are tested on each.
    """
    random = np.random.default_rng((seed, texts, CHAIN_PARTS))
    learned = worse = 0
    for _ in range(trials):
        sizes = [texts * (GROWN + 2) // 3, *[texts] * CHAIN_PARTS]
        found = chain(random, [lengths(random, size) for size in sizes], [0.0] * GROWN, growing=texts)
        for first in range(0, GROWN, 3):
            learned += Outcome.LEARNED in found[first : first + 3]
            worse += Outcome.WORSE in found[first : first + 3]
    return Counts(trials=trials * GROWN // 3, learned=learned, worse=worse)


def written(random: np.random.Generator, words: int) -> NDArray[np.int64]:
    """The words of notes that have so many together."""
    night = lengths(random, 3 + 2 * words // MEDIAN_WORDS)
    return night[: int(np.searchsorted(night.cumsum(), words)) + 1]


def first_job(
    random: np.random.Generator, night: NDArray[np.int64], *, share: float = MAX_HELD_OUT_SHARE
) -> NDArray[np.int64]:
    """The words of the texts that a first job on these holds out."""
    ids = [f"text-{random.integers(2**63):016x}" for _ in night]
    kept = [is_held_out(NewText(text=one, source="")) for one in ids]
    new = [_Weighed(one, words, None, out) for one, words, out in zip(ids, night.tolist(), kept, strict=True)]
    chosen = to_hold_out(new, trained=(), share=share)
    return np.array([text.words for text in new if text.id in chosen], dtype=np.int64)


def power(words: int, *, trials: int, seed: int = 0, gain: float = GAIN) -> float:
    """How often a first job on this number of words is called 'learned'."""
    random = np.random.default_rng((seed, words))
    learned = 0
    for _ in range(trials):
        kept = first_job(random, written(random, words))
        learned += len(kept) > 0 and outcome(random, [kept], gain=gain) is Outcome.LEARNED
    return learned / trials


def chain_power(words: int, *, trials: int, seed: int = 0) -> dict[str, float | None]:
    """How often a chain on so many words is called 'learned' by its second and third job, and again by its second."""
    random = np.random.default_rng((seed, words, CHAIN))
    kept = (first_job(random, written(random, words)) for _ in range(trials))
    found = [chain(random, [one], (GAIN, MORE, MORE)) for one in kept if len(one)]
    by_2, by_3 = (sum(Outcome.LEARNED in one[:number] for one in found) / trials for number in (2, 3))
    again = [one[1] is Outcome.LEARNED for one in found if one[0] is Outcome.LEARNED]
    more = sum(again) / len(again) if again else None
    return {f"power_{words}_by_2": by_2, f"power_{words}_by_3": by_3, f"power_{words}_more": more}


def looks(
    random: np.random.Generator, kept: NDArray[np.int64], nights: Sequence[NDArray[np.int64]], *, gain: float
) -> list[bool]:
    """Whether a candidate is called 'learned' by what its job has held out, and again with each night's texts."""
    found = held_out(random, [np.concatenate([kept, *nights])], gain=gain)
    counts = np.cumsum([len(kept), *map(len, nights)])
    verdicts = (
        found.first(count).verdict(found.fell[found.of_first(count)], link=link, again=link > 1)
        for link, count in enumerate(counts, 1)
        if count
    )
    return [verdict.outcome is Outcome.LEARNED for verdict in verdicts]


def false_waiting(texts: int, *, trials: int) -> float:
    """How often a candidate that changed nothing is called 'learned', at first by this number of texts."""
    random = np.random.default_rng((1, texts))
    nights = [[a_night] * ceil(A_JOB / a_night) for a_night in A_NIGHT]
    found = [
        any(looks(random, lengths(random, texts), [lengths(random, one) for one in nights[trial % 3]], gain=0.0))
        for trial in range(3 * trials)
    ]
    return sum(found) / len(found)


def won_by(there: NDArray[np.int64], kept: NDArray[np.int64]) -> float:
    """What a job of 40 steps wins on the texts that are there, without those that are kept out."""
    words = int(there.sum() - kept.sum())
    return Lesson(Known(), [("", words)], words / 4).won(LEAST_WORTH)


def first_served(trigger: int, share: float, *, trials: int, gain: float | None = None) -> list[int]:
    """The number of the night after which something is served, where so many words make a job; 3 later at most.

    gain: None: what the text that is trained on wins.
    """
    random = np.random.default_rng((2, trigger, int(100 * share)))
    served = []
    for _ in range(trials):
        days = [written(random, A_DAY) for _ in range(ceil(trigger / A_DAY))]
        there = np.concatenate(days)
        kept = first_job(random, there, share=share)
        wins = won_by(there, kept) if gain is None else gain
        found = looks(random, kept, [written(random, A_DAY) for _ in range(2)], gain=wins)
        served.append(len(days) + (found.index(True) if True in found else 3))
    return served


def tables(trials: int) -> dict[str, Any]:
    """How much to hold out of a first job's text, and how much text makes one."""

    def power_and_gain(words: int, share: float) -> str:
        random = np.random.default_rng((3, words, int(100 * share)))
        wins, found = [], 0
        for _ in range(trials):
            there = written(random, words)
            kept = first_job(random, there, share=share)
            wins.append(won_by(there, kept))
            found += len(kept) > 0 and outcome(random, [kept], gain=wins[-1]) is Outcome.LEARNED
        return f"{found / trials:.2f}, {np.mean(wins):.2f}"

    shares = [[f"{share:.0%}", *(power_and_gain(words, share) for words in FIRST_WORDS)] for share in SHARES]
    triggers = []
    for trigger in TRIGGERS:
        nights = first_served(trigger, MAX_HELD_OUT_SHARE, trials=trials)
        first = nights.count(ceil(trigger / A_DAY)) / trials
        triggers.append([f"{trigger:,}", f"{first:.2f}", f"{np.mean(nights):.2f}", f"{np.percentile(nights, 95):g}"])
    return {
        "shares": {"columns": ["held out at most", *(f"{words:,} words" for words in FIRST_WORDS)], "rows": shares},
        "triggers": {"columns": ["words", "served at once", "mean night", "19 of 20 by"], "rows": triggers},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = parser("bench.promotion", "How often promotion is wrong, by simulation.").parse_args(arguments)
    trials = 20 if options.quick else 600
    grid = {texts: [false_rates(texts, parts, trials=trials) for parts in PARTS] for texts in TEXTS}
    chains = {texts: false_chains(texts, trials=3 * trials) for texts in TEXTS}
    growing = {texts: false_growing(texts, trials=3 * trials) for texts in TEXTS}
    values: dict[str, float | None] = {}
    for value, which in (("false_learned", "learned"), ("false_forgets", "worse")):
        rates = (sum(getattr(one, which) for one in found) / (trials * len(PARTS)) for found in grid.values())
        values |= {
            value: max(rates),
            f"{value}_chain": max(getattr(one, which) / one.trials for one in chains.values()),
            f"{value}_growing": max(getattr(one, which) / one.trials for one in growing.values()),
        }
    values |= {f"power_{words}": power(words, trials=5 * trials) for words in WORDS}
    values |= chain_power(1000, trials=5 * trials)
    values["false_learned_waiting"] = max(false_waiting(texts, trials=3 * trials) for texts in TEXTS)
    nights = first_served(1000, MAX_HELD_OUT_SHARE, trials=10 * trials, gain=GAIN)
    first = ceil(1000 / A_DAY)
    values |= {f"power_by_{by}": sum(night < first + by for night in nights) / len(nights) for by in (2, 3)}
    shown = tables(5 * trials)
    raw = {
        "tables": shown,
        "grid": {texts: [vars(one) for one in found] for texts, found in grid.items()},
        "chains": {texts: vars(one) for texts, one in chains.items()},
        "growing": {texts: vars(one) for texts, one in growing.items()},
    }
    titles = {"shares": "Power of the first verdict, and nats won", "triggers": "Nights at 350 words a day"}
    printed = [table(titles[name], **one) for name, one in shown.items()]
    return finish("promotion", printed, values=values, limits=LIMITS, raw=raw, options=options)


if __name__ == "__main__":
    sys.exit(start(main))
