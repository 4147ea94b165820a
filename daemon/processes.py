"""What the system says of a process, in /proc/PID/stat."""

import os
from contextlib import suppress
from pathlib import Path

PROCESSES = Path("/proc")
#: Places behind the name, from 0.
_SESSION, _USER_TICKS, _SYSTEM_TICKS, _STARTED_TICKS = 3, 11, 12, 19


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
