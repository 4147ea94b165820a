"""What the system says of a process, in /proc/PID/stat; and whether it does anything."""

import os
from collections.abc import Callable
from pathlib import Path

#: Places behind the name and the state, from 0.
_SESSION, _USER_TICKS, _SYSTEM_TICKS, _STARTED_TICKS = 2, 10, 11, 18
#: The most time that counts between two looks: whoever looks may have been stopped, too.
LONGEST_GAP_SECONDS = 10.0


def started_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None if the system does not say, or it is gone.

    Together with its id this names a process: ids are used again.
    """
    numbers = _numbers(pid)
    return numbers[_STARTED_TICKS] if numbers else None


def cpu_seconds(pid: int) -> float | None:
    """CPU seconds of a process; None if the system does not say, or the process is gone."""
    numbers = _numbers(pid)
    return (numbers[_USER_TICKS] + numbers[_SYSTEM_TICKS]) / os.sysconf("SC_CLK_TCK") if numbers else None


def session_cpu_seconds(session: int) -> float | None:
    """CPU seconds of all living processes of a session; None if the system does not say."""
    found = [cpu_seconds(pid) or 0.0 for pid in session_pids(session)]
    return sum(found) if found else None


def session_pids(session: int) -> list[int]:
    """The living processes of a session."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if (numbers := _numbers(pid)) and numbers[_SESSION] == session]


def _numbers(pid: int) -> list[int]:
    """The numbers of a process behind its name, which may contain anything, and its state; none if it is gone, or the
    system does not say.
    """
    try:
        return [int(number) for number in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:]]
    except (OSError, ValueError):
        return []


class StallWatch:
    """Adds up for how long a process has used no processor: it is stopped, swapped out, or waits for a device that does
    not answer. It needs no help from the process.
    """

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
