"""A monotonic clock that continues while the machine sleeps, and the owner's local time."""

import time
from datetime import datetime

#: Linux and Android have the first; on other systems the clock stops while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime() -> float:
    """Seconds since some time in the past."""
    return time.clock_gettime(_CLOCK)


def local_time(now: datetime) -> datetime:
    """The time in the owner's zone, also after they have travelled: a process reads its zone only once by itself."""
    time.tzset()
    return now.astimezone()
