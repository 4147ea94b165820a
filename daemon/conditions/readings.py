"""Sensors: each returns a reading, which may be unknown with a reason. A sensor never raises and never waits.

If a quantity has several sources, the first one with a value counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

Value = bool | float | str | None

#: Why there is no value before the first answer.
NOT_YET = "no answer yet"
#: The battery health that allows jobs. A cool or warm battery is charged more slowly, as JEITA's guidelines want it.
HEALTHY = ("good", "cool", "warm")
#: A battery temperature beyond these is a driver's error.
_COLDEST_CELSIUS, _HOTTEST_CELSIUS = -20.0, 80.0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The value of a sensor at a time."""

    name: str
    value: Value  #: None: unknown, or absent
    unit: str | None
    source: str
    at: datetime
    reason: str | None = None  #: why there is no value
    absent: bool = False  #: this machine does not have it (a desktop has no battery)

    @property
    def unknown(self) -> bool:
        """Whether the sensor should have a value but has none."""
        return self.value is None and not self.absent


class Sensor(Protocol):
    """A source of readings."""

    def read(self, now: datetime) -> Reading:
        """The reading at `now`. Never raises, never blocks for long."""


@dataclass(frozen=True)
class FirstKnown:
    """Several sources of one quantity, the most trustworthy first."""

    sources: Sequence[Sensor]

    def read(self, now: datetime) -> Reading:
        """The first with a value, else one that is yet to come, else the first. Reads all, so that all stay fresh."""
        readings = [source.read(now) for source in self.sources]
        return min(readings, key=lambda reading: (reading.value is None, reading.reason != NOT_YET))


@dataclass(frozen=True)
class Measured:
    """A sensor of a file or folder, read by a function: it returns None if the machine has no such sensor, and raises
    if the value is unknown.
    """

    name: str
    unit: str | None
    source: Path
    measure: Callable[[Path], Value]
    missing: str = ""  #: the reason where the machine has none

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        problem = None
        try:
            value = self.measure(self.source)
        except (OSError, ValueError, LookupError) as error:  # ValueError: no number, or not UTF-8
            value, problem = None, f"{type(error).__name__}: {error}"
        absent = value is None and problem is None
        reason = self.missing if absent else problem
        source = str(self.source)
        return Reading(name=self.name, value=value, unit=self.unit, source=source, at=now, reason=reason, absent=absent)


@dataclass(frozen=True)
class Missing:
    """A sensor without a source. The reason says why this machine does not have it, or what to do."""

    name: str
    unit: str | None
    source: str
    reason: str
    absent: bool = False

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        return Reading(value=None, at=now, **vars(self))


def unanswered(readings: Sequence[Reading]) -> bool:
    """Whether a source has not answered yet."""
    return any(reading.reason == NOT_YET for reading in readings)


def is_of_a_battery(celsius: float) -> bool:
    """Whether this is a plausible temperature of a battery."""
    return _COLDEST_CELSIUS <= celsius <= _HOTTEST_CELSIUS


def shown(reading: Reading) -> str:
    """A reading in a few words: "battery 80 %", "no power", "memory 812 MB"."""
    value, unit = reading.value, reading.unit
    if isinstance(value, bool):
        return reading.name if value else f"no {reading.name}"
    if isinstance(value, str) or value is None:
        return f"{reading.name} {value or 'unknown'}"
    if unit == "bytes":
        return f"{reading.name} {value / 1e6:.0f} MB"
    if unit == "s":
        return f"{reading.name} {value / 60:.0f} min"
    return f"{reading.name} {value:.0f} {unit}"
