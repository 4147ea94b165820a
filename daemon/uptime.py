"""A monotonic clock that continues while the machine sleeps."""

import time

#: Linux and Android have the first; on other systems the clock stops while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime() -> float:
    """Seconds since some time in the past."""
    return time.clock_gettime(_CLOCK)
