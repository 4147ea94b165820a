"""The search for a learning rate: a grid that grows while its best is at an edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

FACTOR = 2.0
#: So that a method that learns nothing at any rate comes to an end.
MAX_RATES = 8


def search(rates: Sequence[float], score: Callable[[float], float], *, max_rates: int = MAX_RATES) -> float:
    """The rate with the highest score, which has a worse one on either side unless `max_rates` were tried."""
    scores = {rate: score(rate) for rate in rates}
    while True:
        best = max(scores, key=lambda rate: scores[rate])
        wider = {max(scores): best * FACTOR, min(scores): best / FACTOR}.get(best)
        if wider is None or len(scores) >= max_rates:
            return best
        scores[wider] = score(wider)
