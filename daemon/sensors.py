"""Sensors: each says what it sees now, or that it does not know and why. None of them ever raises.

Power follows systemd's on_ac_power rules. The phone's sensors (Termux) and idleness take their place in
`default_sensors` beside these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

POWER_SUPPLIES = Path("/sys/class/power_supply")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a sensor saw."""

    name: str
    value: bool | float | None  #: None: unknown, or absent
    unit: str | None
    source: str
    at: datetime
    reason: str | None = None  #: why there is no value
    absent: bool = False  #: this machine has no such thing (a desktop has no battery)

    @property
    def unknown(self) -> bool:
        """Whether the sensor should have a value and hasn't."""
        return self.value is None and not self.absent


class Sensor(Protocol):
    """Anything that can be asked for a reading."""

    def read(self, now: datetime) -> Reading:
        """What it sees at `now`. Never raises, never blocks for long."""
        ...


@dataclass(frozen=True)
class PowerSensor:
    """Whether external power is connected."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """True on external power; also where there is no supply and no battery at all, as on a desktop."""
        try:
            value = _on_external_power(self.folder)
        except (OSError, ValueError) as error:  # ValueError: bytes that are no text
            return _unknown("power", None, self.folder, now, error)
        return Reading(name="power", value=value, unit=None, source=str(self.folder), at=now)


@dataclass(frozen=True)
class BatterySensor:
    """The battery's level; of several batteries, the mean."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """Percent; absent on a machine without a battery."""
        try:
            levels = [_percentage((battery / "capacity").read_text()) for battery in _batteries(self.folder)]
        except (OSError, ValueError) as error:
            return _unknown("battery", "%", self.folder, now, error)
        if not levels:
            return Reading(
                name="battery", value=None, unit="%", source=str(self.folder), at=now, reason="no battery", absent=True
            )
        level = sum(levels) / len(levels)
        return Reading(name="battery", value=level, unit="%", source=str(self.folder), at=now)


@dataclass(frozen=True)
class MemorySensor:
    """How much memory new work could take without swapping (MemAvailable)."""

    file: Path = MEMINFO

    def read(self, now: datetime) -> Reading:
        """Bytes."""
        try:
            lines = dict(line.split(":", 1) for line in self.file.read_text().splitlines() if ":" in line)
            value = float(int(lines["MemAvailable"].removesuffix("kB")) * 1024)
        except (OSError, ValueError, KeyError) as error:
            return _unknown("memory", "bytes", self.file, now, error)
        return Reading(name="memory", value=value, unit="bytes", source=str(self.file), at=now)


def default_sensors() -> Sequence[Sensor]:
    """The sensors of this machine."""
    return (PowerSensor(), BatterySensor(), MemorySensor())


def _on_external_power(folder: Path) -> bool:
    discharging = False
    for supply in _supplies(folder):
        if _word(supply / "type") == "Battery":
            discharging = discharging or _discharging(supply)
        elif _word(supply / "online") in ("1", "2"):  # 1: fixed voltage, 2: programmable
            return True
    return not discharging


def _discharging(battery: Path) -> bool:
    """Whether this is a battery of the machine itself (not of a mouse) and it gives power."""
    if _word(battery / "scope") == "Device" or _word(battery / "present") == "0":
        return False
    # An unreadable status counts as discharging: rather wait than drain.
    return _word(battery / "status") not in ("Charging", "Full", "Not charging", "Unknown")


def _batteries(folder: Path) -> Iterator[Path]:
    for supply in _supplies(folder):
        of_the_machine = _word(supply / "type") == "Battery" and _word(supply / "scope") != "Device"
        if of_the_machine and _word(supply / "present") != "0":
            yield supply


def _percentage(text: str) -> float:
    level = float(text)
    if not 0 <= level <= 100:  # also catches NaN
        raise ValueError(f"{level} is not a percentage")
    return level


def _supplies(folder: Path) -> list[Path]:
    """The supplies; none where the kernel has no such folder. Raises OSError where it may not be read."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _word(file: Path) -> str:
    """The attribute's content; empty where the supply has no such attribute."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""


def _unknown(name: str, unit: str | None, source: Path, now: datetime, error: Exception) -> Reading:
    reason = f"{type(error).__name__}: {error}"
    return Reading(name=name, value=None, unit=unit, source=str(source), at=now, reason=reason)
