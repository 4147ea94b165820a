"""What the system says of a process, in /proc/PID/stat; and whether it does anything."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROCESSES = Path("/proc")
#: Places behind the name, from 0.
_SESSION, _USER_TICKS, _SYSTEM_TICKS, _STARTED_TICKS = 3, 11, 12, 19
#: The most time that counts between two looks: whoever looks may have been stopped, too.
LONGEST_GAP_SECONDS = 10.0


def started_ticks(pid: int, processes: Path = PROCESSES) -> int | None:
    """When a process started, in clock ticks since the boot; None if the system does not say, or it is gone.

    Together with its id this names a process: ids are used again.
    """
    try:
        return int(_fields(processes / str(pid))[_STARTED_TICKS])
    except (OSError, ValueError, IndexError):
        return None


def cpu_seconds(pid: int, processes: Path = PROCESSES) -> float | None:
    """CPU seconds of a process; None if the system does not say, or the process is gone."""
    try:
        return _seconds(_fields(processes / str(pid)))
    except (OSError, ValueError, IndexError):
        return None


def session_cpu_seconds(session: int, processes: Path = PROCESSES) -> float | None:
    """CPU seconds of all living processes of a session; None if the system does not say."""
    found = [cpu_seconds(pid, processes) or 0.0 for pid in session_pids(session, processes)]
    return sum(found) if found else None


def session_pids(session: int, processes: Path = PROCESSES) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in processes.glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if int(_fields(folder)[_SESSION]) == session:
                found.append(int(folder.name))
    return found


def _fields(folder: Path) -> list[str]:
    """The numbers of a process behind its name, which may contain anything."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _seconds(fields: list[str]) -> float:
    return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / os.sysconf("SC_CLK_TCK")


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
