"""Sensors of the machine: memory, memory pressure, heat, disk."""

import os
from pathlib import Path

from pocketllm.daemon.conditions.readings import Measured

MEMINFO = Path("/proc/meminfo")
MEMORY_PRESSURE = Path("/proc/pressure/memory")
THERMAL_ZONES = Path("/sys/class/thermal")
#: A zone beyond these is not connected, or uses another unit.
_COLDEST_CELSIUS, _HOTTEST_CELSIUS = -30.0, 150.0


def sensors(data_folder: Path) -> list[Measured]:
    """A sensor for each quantity."""
    return [
        Measured("memory", "bytes", MEMINFO, available),
        Measured("memory pressure", "%", MEMORY_PRESSURE, pressure, "not available"),
        Measured("heat", "°C", THERMAL_ZONES, hottest, "no thermal zone can be read"),
        Measured("disk", "bytes", data_folder, free),
    ]


def available(meminfo: Path) -> float:
    """Bytes of memory available without swapping (MemAvailable)."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return float(int(lines["MemAvailable"].removesuffix("kB")) * 1024)


def pressure(file: Path) -> float | None:
    """Percent of the last ten seconds in which a process waited for memory (PSI): a machine that swaps may still have
    memory available. None without PSI, and for Android apps.
    """
    try:
        first = file.read_text().partition("\n")[0].split()
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None
    value = float(dict(part.split("=", 1) for part in first[1:] if "=" in part)["avg10"])
    if first[0] != "some" or not 0 <= value <= 100:
        raise ValueError(f"cannot be parsed: {' '.join(first)[:80]}")
    return value


def hottest(folder: Path) -> float | None:
    """Degrees Celsius of the hottest thermal zone; None if no zone can be read, as on most phones."""
    celsius = []
    for zone in folder.glob("thermal_zone*/temp"):
        try:
            value = int(zone.read_text()) / 1000
        except (OSError, ValueError):  # some zones can be read only while their chip is awake
            continue
        if _COLDEST_CELSIUS <= value <= _HOTTEST_CELSIUS:
            celsius.append(value)
    return max(celsius, default=None)


def free(folder: Path) -> float:
    """Bytes that we may use where this folder lies."""
    about = os.statvfs(folder)
    return float(about.f_bavail * about.f_frsize)
