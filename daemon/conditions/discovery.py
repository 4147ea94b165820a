"""Discovers this machine's sensors, once, when the daemon starts.

A missing source means on Linux that the machine does not have it. On Android it may only be hidden from apps, so it is
unknown, and the reason says what to do.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketllm.daemon.conditions import linux_machine, linux_power, logind_idle
from pocketllm.daemon.conditions.android_battery import COMMAND, battery_sensors, polled_battery
from pocketllm.daemon.conditions.android_screen import (
    DUMPSYS,
    GETPROP,
    PROPERTY,
    ReportedScreen,
    ScreenIdleness,
    polled_screen,
    screen_property,
    wakefulness,
)
from pocketllm.daemon.conditions.poller import Pace
from pocketllm.daemon.conditions.readings import FirstKnown, Missing, Sensor

#: Exists where systemd's logind runs.
SEATS = Path("/run/systemd/seats")
GRAPHICS = Path("/sys/class/drm")
#: Where Termux has its commands, which a proot inside of it may run, too.
TERMUX_COMMANDS = Path("/data/data/com.termux/files/usr/bin")
#: What to do instead of starting the daemon by a service inside of a proot.
PROOT_ADVICE = (
    "outside of it, in Termux, run `sh termux/install.sh`, which installs PocketLLM there; or have a script in "
    "~/.termux/boot run `proot-distro login NAME -- pocketllm serve`"
)
_NO_TERMUX_API = (
    f"{COMMAND} is missing: install the app Termux:API and run `pkg install termux-api`; see `pocketllm doctor`"
)


@dataclass(frozen=True, kw_only=True)
class SensorSet:
    """The machine's sensors, their polling pace, and the screen that an app reports."""

    sensors: Sequence[Sensor]
    pace: Pace = field(default_factory=Pace)
    reported_screen: ReportedScreen = field(default_factory=ReportedScreen)


@dataclass(frozen=True, kw_only=True)
class Places:
    """The paths to examine; tests use others."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    supplies: Path = linux_power.POWER_SUPPLIES
    seats: Path = SEATS
    graphics: Path = GRAPHICS
    cgroups: Path = Path("/sys/fs/cgroup")
    getprop: str = field(default_factory=lambda: _system_command(GETPROP))
    dumpsys: str = field(default_factory=lambda: _system_command(DUMPSYS))
    termux_commands: Path = TERMUX_COMMANDS

    @property
    def is_android(self) -> bool:
        """Whether this is Android: Termux, or a proot inside of it."""
        return self.is_termux or self.is_proot

    @property
    def is_termux(self) -> bool:
        """By Termux's own variables."""
        return "TERMUX_VERSION" in self.environment or "com.termux" in self.environment.get("PREFIX", "")

    @property
    def is_proot(self) -> bool:
        """Whether this is a Linux distribution inside of Termux (proot-distro), which has no variable of Termux's."""
        of_android = {"ANDROID_ROOT", "ANDROID_DATA"} & self.environment.keys()
        return not self.is_termux and (bool(of_android) or Path(self.getprop).is_file())

    def command(self, name: str) -> str | None:
        """The path of a command on the PATH, or of Termux's; None if there is none."""
        path = self.environment.get("PATH", os.defpath)
        return shutil.which(name, path=f"{path}{os.pathsep}{self.termux_commands}" if self.is_android else path)


def _system_command(file: str) -> str:
    """Android's own command, which may not be on the PATH; else the command of that name."""
    return file if Path(file).is_file() else Path(file).name


def discover_sensors(data_folder: Path, stamp: Path, places: Places = Places()) -> SensorSet:
    """The sensors of this machine. data_folder: for free disk space. stamp: see ScreenIdleness."""
    pace, reported_screen = Pace(), ReportedScreen()
    special = _of_android if places.is_android else _of_linux
    sensors: list[Sensor] = [*special(pace, reported_screen, stamp, places), *linux_machine.sensors(data_folder)]
    return SensorSet(sensors=sensors, pace=pace, reported_screen=reported_screen)


def _of_android(pace: Pace, reported_screen: ReportedScreen, stamp: Path, places: Places) -> list[Sensor]:
    if command := places.command(COMMAND):
        battery = battery_sensors(polled_battery(pace, command), command)
    else:
        battery = [Missing(name, unit, COMMAND, _NO_TERMUX_API) for name, unit in (("power", None), ("battery", "%"))]
    by_property = polled_screen(pace, (places.getprop, PROPERTY), screen_property)
    by_dumpsys = polled_screen(pace, (places.dumpsys, "power"), wakefulness)
    screen = FirstKnown([by_property, reported_screen, by_dumpsys])
    return [*battery, screen, ScreenIdleness(screen, stamp)]


def _of_linux(pace: Pace, reported_screen: ReportedScreen, _stamp: Path, places: Places) -> list[Sensor]:
    return [
        *linux_power.sensors(places.supplies),
        FirstKnown([Missing("screen", None, "this machine", "see idle", absent=True), reported_screen]),
        _idleness(pace, places),
    ]


def _idleness(pace: Pace, places: Places) -> Sensor:
    """By logind if it runs; without it and without a display, nobody uses the machine."""
    if places.seats.is_dir() and (command := places.command(logind_idle.COMMAND)):
        return logind_idle.LogindIdleness(pace, command)
    if _may_have_display(places.graphics):
        advice = "set gate.require_idle to false, or have the desktop POST /status/screen"
        return Missing("idle", "s", "logind", f"there is a display, but no systemd-logind: {advice}")
    return Missing("idle", "s", "this machine", "there is no display", absent=True)


def _may_have_display(graphics: Path) -> bool:
    """Whether there is a connector for a display, or the system does not say."""
    try:
        return any(entry.match("card*-*") for entry in graphics.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return True
