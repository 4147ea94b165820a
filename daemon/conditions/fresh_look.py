"""A fresh look at all sensors, for a phone that was woken for some seconds: while it sleeps, timers stand still."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pocketllm.daemon.conditions.poller import Pace
from pocketllm.daemon.conditions.readings import Reading, unanswered
from pocketllm.daemon.conditions.wake_lock import WakeLock

#: A source that has not answered by then is not waited for.
LONGEST_SECONDS = 30.0


@dataclass
class FreshLook:
    """Asks all sources at once, and holds the wake lock until they have answered and a tick has seen it."""

    wake_lock: WakeLock
    pace: Pace
    uptime: Callable[[], float]  #: monotonic seconds
    _until: float | None = None

    @property
    def under_way(self) -> bool:
        """Whether it waits for answers."""
        return self._until is not None

    def begin(self, now: datetime) -> None:
        """Begin, or begin anew."""
        if self._until is None:
            self.wake_lock.take()
        self._until, self.pace.asked_anew = self.uptime() + LONGEST_SECONDS, now

    def settle(self, readings: Sequence[Reading]) -> None:
        """End when these readings, which a tick has used, are all new."""
        began = self.pace.asked_anew
        if self._until is None or began is None:
            return
        fresh = not unanswered(readings) and all(reading.at >= began for reading in readings)
        if fresh or self.uptime() >= self._until:
            self._until = self.pace.asked_anew = None
            self.wake_lock.release()
