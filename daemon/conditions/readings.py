"""Sensors: each returns a reading, which may be unknown with a reason. A sensor never raises and never waits.

If a quantity has several sources, the first one with a value counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

#: Why there is no value before the first answer.
_NOT_YET = "no answer yet"
#: A battery temperature beyond these is a driver's error.
_COLDEST_CELSIUS, _HOTTEST_CELSIUS = -20.0, 80.0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The value of a sensor at a time."""

    name: str
    value: bool | float | str | None  #: None: unknown, or absent
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
        """The first reading with a value, else the first one. Reads all sources, so that all stay fresh."""
        readings = [source.read(now) for source in self.sources]
        return next((reading for reading in readings if reading.value is not None), readings[0])


@dataclass(frozen=True)
class Absent:
    """A sensor that this machine does not have."""

    name: str
    unit: str | None
    reason: str

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        return absent(self.name, self.unit, "this machine", now, self.reason)


@dataclass(frozen=True)
class Unknown:
    """A sensor that this machine should have but cannot read; the reason says what to do."""

    name: str
    unit: str | None
    source: str
    reason: str

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        return Reading(name=self.name, value=None, unit=self.unit, source=self.source, at=now, reason=self.reason)


def unknown(name: str, unit: str | None, source: Path | str, now: datetime, error: Exception) -> Reading:
    """The reading of a source that cannot be read."""
    reason = f"{type(error).__name__}: {error}"
    return Reading(name=name, value=None, unit=unit, source=str(source), at=now, reason=reason)


def absent(name: str, unit: str | None, source: Path | str, now: datetime, reason: str) -> Reading:
    """The reading of a sensor that this machine does not have."""
    return Reading(name=name, value=None, unit=unit, source=str(source), at=now, reason=reason, absent=True)


def not_yet(name: str, unit: str | None, source: str, now: datetime) -> Reading:
    """The reading of a source that has not answered yet."""
    return Reading(name=name, value=None, unit=unit, source=source, at=now, reason=_NOT_YET)


def unanswered(readings: Sequence[Reading]) -> bool:
    """Whether a source has not answered yet."""
    return any(reading.reason == _NOT_YET for reading in readings)


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
