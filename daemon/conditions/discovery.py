"""Which sensors this machine has: found by looking, once, when the daemon starts.

On Android nothing may be concluded from what an app is not allowed to see: there a source that is missing is unknown,
with what to do about it, where on a Linux machine it means that there is no such thing.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketllm.daemon.conditions import linux_machine, linux_power, logind_idle
from pocketllm.daemon.conditions.android_battery import COMMAND, TermuxBattery
from pocketllm.daemon.conditions.android_screen import (
    DUMPSYS,
    GETPROP,
    ScreenIdleness,
    ToldScreen,
    by_dumpsys,
    by_property,
)
from pocketllm.daemon.conditions.poller import Pace
from pocketllm.daemon.conditions.readings import Absent, FirstKnown, Sensor, Unknown

#: Where systemd's logind notes who sits where.
SEATS = Path("/run/systemd/seats")
GRAPHICS = Path("/sys/class/drm")
_NO_TERMUX_API = (
    f"{COMMAND} is not there: install the app Termux:API and run `pkg install termux-api`; see `pocketllm doctor`"
)


@dataclass(frozen=True, kw_only=True)
class SensorSet:
    """The machine's sensors, how eagerly they look, and the one that is told."""

    sensors: Sequence[Sensor]
    pace: Pace = field(default_factory=Pace)
    told: ToldScreen = field(default_factory=ToldScreen)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where to look; other ones in tests."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    supplies: Path = linux_power.POWER_SUPPLIES
    seats: Path = SEATS
    graphics: Path = GRAPHICS
    getprop: str = field(default_factory=lambda: _system_command(GETPROP))
    dumpsys: str = field(default_factory=lambda: _system_command(DUMPSYS))

    @property
    def is_android(self) -> bool:
        """Termux says so; a proot inside it inherits the prefix."""
        return is_termux(self.environment)

    def command(self, name: str) -> str | None:
        """A command's file on the PATH."""
        return shutil.which(name, path=self.environment.get("PATH", os.defpath))


def is_termux(environment: Mapping[str, str]) -> bool:
    """Whether these are the variables of a program under Termux."""
    return "TERMUX_VERSION" in environment or "com.termux" in environment.get("PREFIX", "")


def _system_command(file: str) -> str:
    """Android's own command, which may not be on the PATH; where it is not there, whatever has its name."""
    return file if Path(file).is_file() else Path(file).name


def discover_sensors(data_folder: Path, stamp: Path, places: Places = Places()) -> SensorSet:
    """The sensors of this machine. data_folder: whose disk counts; stamp: see ScreenIdleness."""
    pace, told = Pace(), ToldScreen()
    special = _of_android if places.is_android else _of_linux
    return SensorSet(
        sensors=[
            *special(pace, told, stamp, places),
            linux_machine.MemorySensor(),
            linux_machine.PressureSensor(),
            linux_machine.ThermalSensor(),
            linux_machine.DiskSensor(data_folder),
        ],
        pace=pace,
        told=told,
    )


def _of_android(pace: Pace, told: ToldScreen, stamp: Path, places: Places) -> list[Sensor]:
    command = places.command(COMMAND)
    battery: Sequence[Sensor] = (
        TermuxBattery.by_command(pace, command).sensors
        if command
        else [Unknown(name, unit, COMMAND, _NO_TERMUX_API) for name, unit in (("power", None), ("battery", "%"))]
    )
    screen = FirstKnown([by_property(pace, places.getprop), told, by_dumpsys(pace, places.dumpsys)])
    return [*battery, screen, ScreenIdleness(screen, stamp)]


def _of_linux(pace: Pace, told: ToldScreen, _stamp: Path, places: Places) -> list[Sensor]:
    supplies = places.supplies
    return [
        linux_power.PowerSensor(supplies),
        linux_power.PlugSensor(supplies),
        linux_power.BatterySensor(supplies),
        linux_power.BatteryTemperatureSensor(supplies),
        linux_power.BatteryHealthSensor(supplies),
        FirstKnown([Absent("screen", None, "idleness says it"), told]),
        _idleness(pace, places),
    ]


def _idleness(pace: Pace, places: Places) -> Sensor:
    """By logind, where it runs; where it does not and there is no display either, nobody is there to be disturbed."""
    if places.seats.is_dir() and (command := places.command(logind_idle.COMMAND)):
        return logind_idle.LogindIdleness.by_command(pace, command)
    if any(places.graphics.glob("card*-*/status")):
        return Unknown(
            "idle",
            "s",
            "logind",
            "there is a display and no systemd-logind to say whether it is used: set gate.require_idle to false, or "
            "let the desktop POST /status/screen",
        )
    return Absent("idle", "s", "there is no display, and nobody to be disturbed")
