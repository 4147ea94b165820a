"""Finds a process that does nothing: it is stopped, swapped out, or waits for a device that does not answer.

A working process uses the processor, so its CPU time is its sign of life. It needs no help from the process.
"""

from collections.abc import Callable

#: The most time that counts between two looks: whoever looks may have been stopped, too.
LONGEST_GAP_SECONDS = 10.0


class StallWatch:
    """Adds up for how long a process has used no processor."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._at, self._idle = clock(), 0.0
        self._cpu: float | None = None

    def idle_seconds(self, cpu: float | None) -> float:
        """Seconds since its CPU seconds last changed, as seen by these calls; 0 while they are unknown."""
        now = self._clock()
        gap = min(max(0.0, now - self._at), LONGEST_GAP_SECONDS)
        self._idle = self._idle + gap if cpu is not None and cpu == self._cpu else 0.0
        self._at, self._cpu = now, cpu
        return self._idle
