"""The phone's battery by termux-battery-status: plug, level, temperature and health in one answer.

Fields that older apps omit, and implausible values, are unknown. A phone that discharges while plugged in has a charger
that is too weak to count as external power.
"""

import json
from math import isfinite
from operator import itemgetter
from typing import Any

from pocketllm.daemon.child import run
from pocketllm.daemon.conditions.poller import Background, Pace, Polled
from pocketllm.daemon.conditions.readings import Sensor, Value, is_of_a_battery
from pocketllm.daemon.errors import ChildFailed

COMMAND = "termux-battery-status"
#: It usually takes a second, and seven on slow phones.
_TIMEOUT_SECONDS = 10.0
#: The command comes in the package termux-api. Without the app it hangs, and so it does while Android freezes the app.
_NEEDS_APP = "install or open the app Termux:API (com.termux.api), without which the package termux-api does nothing"
#: The word after PLUGGED_ (-1: the app does not know) -> the plug.
_PLUGS = {"AC": "ac", "USB": "usb", "WIRELESS": "wireless", "DOCK": "dock"}
#: The states in which a plugged phone does not discharge.
_ON_POWER = ("CHARGING", "FULL", "NOT_CHARGING")
_STATES = (*_ON_POWER, "DISCHARGING")
_HEALTH = ("COLD", "DEAD", "GOOD", "OVERHEAT", "OVER_VOLTAGE", "UNSPECIFIED_FAILURE")
#: The quantities of an answer, and their units.
_UNITS = {"power": None, "plug": None, "battery": "%", "temperature": "°C", "health": None}


def parse(output: str) -> dict[str, Value]:
    """The quantities in the command's output; None is unknown. Raises ChildFailed if it is not a JSON object."""
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise ChildFailed(f"{COMMAND} did not return JSON") from error
    if not isinstance(answer, dict):
        raise ChildFailed(f"{COMMAND} did not return a JSON object")
    plug, health = _plug(answer.get("plugged")), answer.get("health")
    return {
        "power": _external_power(plug, answer.get("status")),
        "plug": plug,
        "battery": _level(answer),
        "temperature": _celsius(answer.get("temperature")),
        "health": health.lower() if health in _HEALTH else None,
    }


def _plug(plugged: object) -> str | None:
    """ "ac", "usb", "wireless", "dock" or "another"; "none" on battery."""
    if plugged == "UNPLUGGED":
        return "none"
    if not isinstance(plugged, str) or not plugged.startswith("PLUGGED_") or plugged == "PLUGGED_-1":
        return None
    return _PLUGS.get(plugged.removeprefix("PLUGGED_"), "another")


def _external_power(plug: str | None, status: object) -> bool | None:
    if plug == "none":
        return False
    if plug is None or status not in _STATES:
        return None
    return status in _ON_POWER


def _level(answer: dict[str, Any]) -> float | None:
    level = _number(answer.get("percentage"))
    if level is None:
        part, whole = _number(answer.get("level")), _number(answer.get("scale"))
        level = 100 * part / whole if part is not None and whole is not None and whole > 0 else None
    return level if level is not None and 0 <= level <= 100 else None


def _celsius(value: object) -> float | None:
    number = _number(value)
    return number if number and is_of_a_battery(number) else None  # some drivers always say exactly zero


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def polled_battery(pace: Pace, command: str) -> Background[dict[str, Value]]:
    """Polls the command."""

    def ask() -> dict[str, Value]:
        try:
            return parse(run([command], timeout_seconds=_TIMEOUT_SECONDS))
        except ChildFailed as error:
            raise ChildFailed(f"{error}: {_NEEDS_APP}") from error

    return Background(ask, pace, idle_seconds=60.0, training_seconds=5.0)


def battery_sensors(answers: Background[dict[str, Value]], source: str = COMMAND) -> list[Sensor]:
    """A sensor for each quantity of an answer."""
    return [Polled(name, unit, source, answers, itemgetter(name)) for name, unit in _UNITS.items()]
