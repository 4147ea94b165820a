"""How often promotion is wrong, by bench.promotion's simulation: `python -m bench.promotion` has more trials."""

import sys

import pytest

from bench.promotion import PARTS, false_chains, false_rates, power
from pocketllm.daemon.evaluation.promotion import SIGNIFICANCE

TRIALS = 400
#: What chance adds to a true rate of SIGNIFICANCE in so many trials, in one of 1,000 cases; the seeds are fixed.
ALLOWANCE = 3.1 * (SIGNIFICANCE * (1 - SIGNIFICANCE) / (TRIALS * len(PARTS))) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("texts", [2, 10, 40])
def test_of_jobs_that_change_nothing_at_most_one_in_twenty_learns_or_forgets(texts: int) -> None:
    """With one standard error over blocks and the worst of all parts it was one in three, and three in four."""
    found = [false_rates(texts, parts, trials=TRIALS) for parts in PARTS]
    for which in ("learned", "worse"):
        rate = sum(getattr(one, which) for one in found) / (TRIALS * len(PARTS))
        assert rate <= SIGNIFICANCE + ALLOWANCE, (texts, which)
        sys.stdout.write(f"{texts} held-out texts: {100 * rate:.1f} % {which}\n")


@pytest.mark.slow
def test_power_grows_with_the_words() -> None:
    little, some, much = (power(words, trials=TRIALS) for words in (400, 1000, 4000))
    sys.stdout.write(f"power at 400, 1,000 and 4,000 words: {little:.2f} {some:.2f} {much:.2f}\n")
    assert little > 0.25 and some > 0.75 and much > 0.9
    assert power(400, trials=TRIALS, gain=0.0) < SIGNIFICANCE + ALLOWANCE * len(PARTS) ** 0.5


@pytest.mark.slow
def test_of_chains_that_change_nothing_at_most_one_in_twenty_learns_or_forgets() -> None:
    """With the first job's level for all ten, it was one in seven."""
    found = false_chains(5, trials=len(PARTS) * TRIALS)
    assert max(found.learned, found.worse) / found.trials <= 0.05, found
