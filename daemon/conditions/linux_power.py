"""Sensors of power supplies and batteries in sysfs.

Whether there is external power follows systemd's on_ac_power rules (src/shared/battery-util.c).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pocketllm.daemon.conditions.readings import Reading, absent, is_of_a_battery, unknown

POWER_SUPPLIES = Path("/sys/class/power_supply")


@dataclass(frozen=True)
class PowerSensor:
    """Whether external power is connected."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """True on external power, and without any supply and battery, as on a desktop."""
        try:
            value = _on_external_power(self.folder)
        except (OSError, ValueError) as error:  # ValueError: not UTF-8
            return unknown("power", None, self.folder, now, error)
        return Reading(name="power", value=value, unit=None, source=str(self.folder), at=now)


@dataclass(frozen=True)
class BatterySensor:
    """The battery's level; the mean of several batteries."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """Percent; absent on a machine without a battery."""
        try:
            levels = [_percentage((battery / "capacity").read_text()) for battery in _batteries(self.folder)]
        except (OSError, ValueError) as error:
            return unknown("battery", "%", self.folder, now, error)
        if not levels:
            return absent("battery", "%", self.folder, now, "no battery")
        level = sum(levels) / len(levels)
        return Reading(name="battery", value=level, unit="%", source=str(self.folder), at=now)


@dataclass(frozen=True)
class PlugSensor:
    """The kind of external power."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """ "ac", "usb", "wireless" or "another"; "none" on battery. Of several, the first of these."""
        try:
            kinds = {_PLUGS.get(_word(supply / "type"), "another") for supply in _online(self.folder)}
            on_power = _on_external_power(self.folder)
        except (OSError, ValueError) as error:
            return unknown("plug", None, self.folder, now, error)
        kind = next((kind for kind in (*_PLUGS.values(), "another") if kind in kinds), "ac" if on_power else "none")
        return Reading(name="plug", value=kind, unit=None, source=str(self.folder), at=now)


@dataclass(frozen=True)
class BatteryTemperatureSensor:
    """The battery's temperature; the highest of several batteries."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """Degrees Celsius; absent if no battery has a sensor."""
        try:
            tenths = [float(word) for battery in _batteries(self.folder) if (word := _word(battery / "temp"))]
            celsius = [_plausible(value / 10) for value in tenths]
        except (OSError, ValueError) as error:
            return unknown("temperature", "°C", self.folder, now, error)
        if not celsius:
            return absent("temperature", "°C", self.folder, now, "no battery with a temperature sensor")
        return Reading(name="temperature", value=max(celsius), unit="°C", source=str(self.folder), at=now)


@dataclass(frozen=True)
class BatteryHealthSensor:
    """The battery's health by its driver."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """ "good", or the first other word ("overheat", "dead", "over_voltage", ...); absent without one."""
        try:
            words = [_word(battery / "health").lower().replace(" ", "_") for battery in _batteries(self.folder)]
        except (OSError, ValueError) as error:
            return unknown("health", None, self.folder, now, error)
        reported = [word for word in words if word not in ("", "unknown")]
        worst = next((word for word in reported if word != "good"), "good" if reported else None)
        return Reading(
            name="health",
            value=worst,
            unit=None,
            source=str(self.folder),
            at=now,
            reason=None if worst else "no battery reports its health",
            absent=worst is None,
        )


@dataclass(frozen=True)
class BatteryPowerSensor:
    """What flows into the battery; the sum of several batteries."""

    folder: Path = POWER_SUPPLIES

    def read(self, now: datetime) -> Reading:
        """Watts, below zero while it discharges; absent if no battery tells its current or its power."""
        try:
            watts = [power for battery in _batteries(self.folder) if (power := _watts(battery)) is not None]
        except (OSError, ValueError) as error:
            return unknown("battery power", "W", self.folder, now, error)
        if not watts:
            return absent("battery power", "W", self.folder, now, "no battery reports its current")
        return Reading(name="battery power", value=sum(watts), unit="W", source=str(self.folder), at=now)


#: Type of a supply -> plug, the strongest first.
_PLUGS = {"Mains": "ac", "USB": "usb", "Wireless": "wireless"}


def _on_external_power(folder: Path) -> bool:
    if any(_online(folder)):
        return True
    return not any(_discharging(supply) for supply in _supplies(folder) if _word(supply / "type") == "Battery")


def _online(folder: Path) -> Iterator[Path]:
    """The supplies that provide power now."""
    for supply in _supplies(folder):
        kind = _word(supply / "type")
        if kind == "Battery" or (kind == "USB" and _is_source(supply)):
            continue
        if _word(supply / "online") in ("1", "2"):  # 1: fixed voltage, 2: programmable
            yield supply


def _is_source(supply: Path) -> bool:
    """Whether this machine powers the connected device: all of the supply's type-C ports are sources."""
    roles = [_word(port / "power_role") for port in sorted((supply / "device" / "typec").glob("port*"))]
    return bool(roles) and all("[source]" in role for role in roles)


def _discharging(battery: Path) -> bool:
    """Whether this is a battery of the machine itself (not of a mouse) and it discharges."""
    if _word(battery / "scope") == "Device" or _word(battery / "present") == "0":
        return False
    # An unknown word counts as discharging, to be safe.
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


def _watts(battery: Path) -> float | None:
    """From microwatts, or microamperes and microvolts. Drivers disagree about the sign; the state tells it."""
    microwatts, microamperes, microvolts = (_word(battery / f"{name}_now") for name in ("power", "current", "voltage"))
    if microwatts:
        watts = abs(float(microwatts)) / 1e6
    elif microamperes and microvolts:
        watts = abs(float(microamperes)) * float(microvolts) / 1e12
    else:
        return None
    return {"Charging": watts, "Discharging": -watts}.get(_word(battery / "status"), 0.0)


def _plausible(celsius: float) -> float:
    if not is_of_a_battery(celsius):
        raise ValueError(f"{celsius} °C is not a plausible battery temperature")
    return celsius


def _supplies(folder: Path) -> list[Path]:
    """The supplies; none if the kernel has no such folder. Raises OSError if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _word(file: Path) -> str:
    """The attribute's content; empty if the supply has no such attribute."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
