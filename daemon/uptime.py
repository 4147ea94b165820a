"""A clock that nobody sets and that runs on while the machine sleeps."""

import time

#: Linux and Android have the first; others count without the sleep.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime() -> float:
    """Seconds since some time in the past."""
    return time.clock_gettime(_CLOCK)
