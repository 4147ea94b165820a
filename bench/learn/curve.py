"""A run against the clock: how long it has learned, without the time for measuring, and the held-out loss so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.common.child import memory_of
from bench.common.rates import best_mean, grouped

#: How often the held-out loss is measured in a run, besides at its start.
POINTS = 16
#: Stands for a loss that is no number, which JSON has no word for.
DIVERGED = 99.0

#: A run in the results: its writer, contender, rate and seed, what it was run on, and what its process says.
Run = dict[str, Any]


class Curve:
    """Counts the seconds of learning, and measures now and then while the clock stands."""

    def __init__(self, seconds: float, measure: Callable[[], float], *, points: int = POINTS) -> None:
        """measure: the held-out loss in nats per token, at the parameters as they stand. points: how often, besides at
        the start.
        """
        self._limit, self._measure, self._every = seconds, measure, seconds / points
        self.steps, self._spent = 0, 0.0
        self.points: list[tuple[float, int, float]] = [(0.0, 0, self._measured())]
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of learning, until now."""
        return self._spent + time.perf_counter() - self._since

    @property
    def remaining(self) -> float:
        """The part of the run that lies ahead, from 1 to 0."""
        return max(0.0, 1 - self.seconds / self._limit)

    @property
    def running(self) -> bool:
        """Whether there is time for another step."""
        return self.seconds < self._limit

    def stepped(self) -> None:
        """A step has been made."""
        self.steps += 1
        if self.seconds >= len(self.points) * self._every or not self.running:
            self.measure()

    def measure(self) -> None:
        """Measure now, off the clock."""
        self._spent = self.seconds
        self.points.append((self._spent, self.steps, self._measured()))
        self._since = time.perf_counter()

    def _measured(self) -> float:
        loss = self._measure()
        return loss if math.isfinite(loss) else DIVERGED

    def report(self) -> dict[str, Any]:
        """For the bench: the curve, and the reduction of the loss from its first to its last point."""
        first, last = self.points[0][2], self.points[-1][2]
        return {
            "curve": self.points,
            "steps": self.steps,
            "reduction": first - last,
            "peak_rss_bytes": memory_of().get("VmHWM"),
        }


def seconds_to(curve: Sequence[Sequence[float]], loss: float) -> float:
    """When a curve first reaches a loss, by straight lines between its points; infinity where it does not."""
    before = curve[0]
    for point in curve:
        if point[2] <= loss:
            fallen = before[2] - point[2]
            part = (before[2] - loss) / fallen if fallen > 0 else 1.0
            return before[0] + part * (point[0] - before[0])
        before = point
    return math.inf


def best_runs(runs: Sequence[Run], method: str) -> list[Run]:
    """Of one writer's runs, all seeds of the method's contender and rate that won most, in the mean of its seeds."""
    own = [run for run in runs if run["contender"].partition(",")[0] == method]
    by_seed = sorted(own, key=lambda run: int(run["seed"]))
    return best_mean(grouped(by_seed, "contender", "rate").values(), "reduction")


class Schedule:
    """A warm-up by steps and a cosine by time, down to a twentieth."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up

    def share(self, step: int, remaining: float) -> float:
        """The part of the full learning rate."""
        falling = 0.95 * (1 + math.cos(math.pi * (1 - remaining))) / 2 + 0.05
        return min(1.0, step / self._warm_up) * falling
