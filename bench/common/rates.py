"""The search for a learning rate: a grid that grows while its best is at an edge; then the best mean of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

#: A run in a bench's results.
Run = dict[str, Any]

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


def grouped(runs: Iterable[Run], *names: str) -> dict[tuple[Any, ...], list[Run]]:
    """The runs with equal values of these names, in the order in which they came."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run[name] for name in names), []).append(run)
    return groups


def best_mean(groups: Iterable[list[Run]], score: str) -> list[Run]:
    """The runs whose mean score is the highest, where one without a score has 0; empty where there are none."""
    return max(groups, key=lambda runs: mean(float(run.get(score, 0.0)) for run in runs), default=[])
