"""Rate limits per caller."""

from collections.abc import Callable

#: Size of a burst, in seconds of the rate: for notes that were written offline.
_BURST_SECONDS = 10


class Rate:
    """A token bucket for each caller."""

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._per_second, self._clock = per_second, clock
        self._burst = max(1.0, per_second * _BURST_SECONDS)
        self._left: dict[str, tuple[float, float]] = {}  #: name -> requests left, and the time

    def wait_seconds(self, name: str) -> float:
        """Count a request; returns 0 if it is allowed, else the seconds until the next one is."""
        now = self._clock()
        left, before = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - before) * self._per_second)  # the clock may have been set back
        if left < 1:
            self._left[name] = left, now
            return (1 - left) / self._per_second
        self._left[name] = left - 1, now
        return 0.0
