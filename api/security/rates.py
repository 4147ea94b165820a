"""How much one caller may ask, and all together: what is too much is refused with the time to try again."""

from collections.abc import Callable

#: An app that has been quiet may ask so many seconds' worth at once: notes that were written offline.
_BURST_SECONDS = 10


class Rate:
    """A token bucket a caller: so many requests a second in the long run, and a burst now and then."""

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._per_second, self._clock = per_second, clock
        self._burst = max(1.0, per_second * _BURST_SECONDS)
        self._left: dict[str, tuple[float, float]] = {}  #: name -> requests left, and when that was

    def wait_seconds(self, name: str) -> float:
        """Count a request; 0 when it may pass, else in how many seconds the next one may."""
        now = self._clock()
        left, before = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - before) * self._per_second)  # a clock may have been set back
        if left < 1:
            self._left[name] = left, now
            return (1 - left) / self._per_second
        self._left[name] = left - 1, now
        return 0.0
