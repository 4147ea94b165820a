"""Sensors of power supplies and batteries in sysfs.

Whether there is external power follows systemd's on_ac_power rules (src/shared/battery-util.c).
"""

from collections.abc import Iterator
from pathlib import Path

from pocketllm.daemon.conditions.readings import HEALTHY, Measured, is_of_a_battery

POWER_SUPPLIES = Path("/sys/class/power_supply")
#: Type of a supply -> plug, the strongest first.
_PLUGS = {"Mains": "ac", "USB": "usb", "Wireless": "wireless"}


def sensors(folder: Path) -> list[Measured]:
    """A sensor for each quantity."""
    return [
        Measured("power", None, folder, on_external_power),
        Measured("plug", None, folder, plug),
        Measured("battery", "%", folder, level, "no battery"),
        Measured("temperature", "°C", folder, celsius, "no battery with a temperature sensor"),
        Measured("health", None, folder, health, "no battery reports its health"),
    ]


def on_external_power(folder: Path) -> bool:
    """True on external power, and without any supply and battery, as on a desktop."""
    if any(_online(folder)):
        return True
    # An unknown word counts as discharging, to be safe.
    steady = ("Charging", "Full", "Not charging", "Unknown")
    return all(_word(battery / "status") in steady for battery in _batteries(folder))


def plug(folder: Path) -> str:
    """The kind of external power: "ac", "usb", "wireless" or "another"; "none" on battery. Of several, the first."""
    kinds = {_PLUGS.get(_word(supply / "type"), "another") for supply in _online(folder)}
    if not kinds:
        return "ac" if on_external_power(folder) else "none"
    return next(kind for kind in (*_PLUGS.values(), "another") if kind in kinds)


def level(folder: Path) -> float | None:
    """The battery's level in percent; the mean of several batteries, weighted by their capacity where all tell it."""
    batteries = list(_batteries(folder))
    levels = [float((battery / "capacity").read_text()) for battery in batteries]
    if not all(0 <= one <= 100 for one in levels):  # also catches NaN
        raise ValueError(f"not a percentage: {levels}")
    told = [[_word(battery / name) for battery in batteries] for name in ("energy_full", "charge_full")]
    sizes = [max(1, int(word)) for word in next((words for words in told if all(words)), ["1"] * len(levels))]
    return sum(size * one for size, one in zip(sizes, levels, strict=True)) / sum(sizes) if levels else None


def celsius(folder: Path) -> float | None:
    """The battery's temperature in degrees Celsius; the highest of several batteries."""
    found = [float(word) / 10 for battery in _batteries(folder) if (word := _word(battery / "temp"))]
    if not all(map(is_of_a_battery, found)):
        raise ValueError(f"not a plausible battery temperature: {found} °C")
    return max(found, default=None)


def health(folder: Path) -> str | None:
    """ "good", or the driver's word ("warm", "overheat", "dead", ...); of several, the first that forbids jobs."""
    words = [_word(battery / "health").lower().replace(" ", "_") for battery in _batteries(folder)]
    reported = [word for word in words if word not in ("", "unknown")]
    return next((word for word in reported if word not in HEALTHY), reported[0] if reported else None)


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


def _batteries(folder: Path) -> Iterator[Path]:
    """The batteries of the machine itself, not of a mouse."""
    for supply in _supplies(folder):
        of_the_machine = _word(supply / "type") == "Battery" and _word(supply / "scope") != "Device"
        if of_the_machine and _word(supply / "present") != "0":
            yield supply


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
