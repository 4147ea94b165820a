"""Sensors of the machine: memory, memory pressure, heat, disk."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pocketllm.daemon.conditions.readings import Reading, absent, unknown

MEMINFO = Path("/proc/meminfo")
MEMORY_PRESSURE = Path("/proc/pressure/memory")
THERMAL_ZONES = Path("/sys/class/thermal")
#: A zone beyond these is not connected, or uses another unit.
_COLDEST_CELSIUS, _HOTTEST_CELSIUS = -30.0, 150.0


@dataclass(frozen=True)
class MemorySensor:
    """Memory available without swapping (MemAvailable)."""

    file: Path = MEMINFO

    def read(self, now: datetime) -> Reading:
        """Bytes."""
        try:
            lines = dict(line.split(":", 1) for line in self.file.read_text().splitlines() if ":" in line)
            value = float(int(lines["MemAvailable"].removesuffix("kB")) * 1024)
        except (OSError, ValueError, KeyError) as error:
            return unknown("memory", "bytes", self.file, now, error)
        return Reading(name="memory", value=value, unit="bytes", source=str(self.file), at=now)


@dataclass(frozen=True)
class PressureSensor:
    """Memory pressure (PSI): a machine that swaps may still have memory available."""

    file: Path = MEMORY_PRESSURE

    def read(self, now: datetime) -> Reading:
        """Percent of the last ten seconds in which a process waited for memory; absent without PSI, and for Android
        apps.
        """
        try:
            first = self.file.read_text().partition("\n")[0].split()
            value = float(dict(part.split("=", 1) for part in first[1:] if "=" in part)["avg10"])
            if first[0] != "some" or not 0 <= value <= 100:
                raise ValueError(f"cannot be parsed: {' '.join(first)[:80]}")
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            return absent("memory pressure", "%", self.file, now, f"{type(error).__name__}: not available")
        except (OSError, ValueError, KeyError, IndexError) as error:
            return unknown("memory pressure", "%", self.file, now, error)
        return Reading(name="memory pressure", value=value, unit="%", source=str(self.file), at=now)


@dataclass(frozen=True)
class ThermalSensor:
    """The hottest of the machine's thermal zones."""

    folder: Path = THERMAL_ZONES

    def read(self, now: datetime) -> Reading:
        """Degrees Celsius; absent if no zone can be read, as on most phones."""
        celsius = []
        for zone in sorted(self.folder.glob("thermal_zone*/temp")):
            try:
                value = int(zone.read_text()) / 1000
            except (OSError, ValueError):  # some zones can be read only while their chip is awake
                continue
            if _COLDEST_CELSIUS <= value <= _HOTTEST_CELSIUS:
                celsius.append(value)
        if not celsius:
            return absent("heat", "°C", self.folder, now, "no thermal zone can be read")
        return Reading(name="heat", value=max(celsius), unit="°C", source=str(self.folder), at=now)


@dataclass(frozen=True)
class DiskSensor:
    """How much room there is where the data folder lies."""

    folder: Path

    def read(self, now: datetime) -> Reading:
        """Bytes that we may use."""
        try:
            about = os.statvfs(self.folder)
        except OSError as error:
            return unknown("disk", "bytes", self.folder, now, error)
        value = float(about.f_bavail * about.f_frsize)
        return Reading(name="disk", value=value, unit="bytes", source=str(self.folder), at=now)
