"""A run against the clock: how long it has learned, without the time for measuring, and the held-out loss so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from bench.child import memory_of

#: How often the held-out loss is measured in a run, besides at its start.
_POINTS = 8


class Curve:
    """Counts the seconds of learning, and measures now and then while the clock stands."""

    def __init__(self, seconds: float, measure: Callable[[], float]) -> None:
        """measure: the held-out loss in nats per token, at the parameters as they stand."""
        self._limit, self._measure = seconds, measure
        self.points: list[tuple[float, int, float]] = [(0.0, 0, measure())]
        self.steps, self._spent = 0, 0.0
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
        if self.seconds >= len(self.points) * self._limit / _POINTS or not self.running:
            self.measure()

    def measure(self) -> None:
        """Measure now, off the clock."""
        self._spent = self.seconds
        self.points.append((self._spent, self.steps, self._measure()))
        self._since = time.perf_counter()

    def report(self) -> dict[str, Any]:
        """For the bench: the curve, the reduction from the first to the last point, and to the lowest."""
        first, last = self.points[0][2], self.points[-1][2]
        return {
            "curve": self.points,
            "steps": self.steps,
            "reduction": first - last,
            "best_reduction": first - min(loss for _, _, loss in self.points),
            "peak_rss_bytes": memory_of().get("VmHWM"),
        }


class Schedule:
    """A warm-up by steps and a cosine by time, down to a twentieth."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up

    def share(self, step: int, remaining: float) -> float:
        """The part of the full learning rate."""
        falling = 0.95 * (1 + math.cos(math.pi * (1 - remaining))) / 2 + 0.05
        return min(1.0, step / self._warm_up) * falling
