"""The phone's battery by termux-battery-status: plug, level, temperature and health in one answer.

Fields that older apps omit, and implausible values, are unknown. A phone that discharges while plugged in has a charger
that is too weak to count as external power.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any, Self

from pocketllm.daemon.conditions.poller import Answers, Background, Pace, ProbeFailed, run
from pocketllm.daemon.conditions.readings import Reading, Sensor, is_of_a_battery, not_yet

COMMAND = "termux-battery-status"
#: It usually takes a second, and seven on slow phones.
TIMEOUT_SECONDS = 10.0
_IDLE_SECONDS, _TRAINING_SECONDS = 60.0, 5.0
#: The word after PLUGGED_ (-1: the app does not know) -> the plug.
_PLUGS = {"AC": "ac", "USB": "usb", "WIRELESS": "wireless", "DOCK": "dock"}
#: The states in which a plugged phone does not discharge.
_ON_POWER = ("CHARGING", "FULL", "NOT_CHARGING")
_STATES = (*_ON_POWER, "DISCHARGING")
#: What flows into the battery; a full one, or one that is not charged, neither gets nor gives any.
_SIGNS = {"CHARGING": 1, "DISCHARGING": -1, "FULL": 0, "NOT_CHARGING": 0}
_HEALTH = ("COLD", "DEAD", "GOOD", "OVERHEAT", "OVER_VOLTAGE", "UNSPECIFIED_FAILURE")


@dataclass(frozen=True, kw_only=True)
class Battery:
    """An answer; None is unknown."""

    external_power: bool | None
    plug: str | None  #: "ac", "usb", "wireless", "dock", "another"; "none"
    level_percent: float | None
    celsius: float | None
    health: str | None  #: in small letters
    watts: float | None = None  #: into the battery; below zero: out of it


def parse(output: str) -> Battery:
    """Parse the command's output. Raises ProbeFailed if it is not a JSON object."""
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise ProbeFailed(f"{COMMAND} did not return JSON") from error
    if not isinstance(answer, dict):
        raise ProbeFailed(f"{COMMAND} did not return a JSON object")
    plug, health = _plug(answer.get("plugged")), answer.get("health")
    return Battery(
        external_power=_external_power(plug, answer.get("status")),
        plug=plug,
        level_percent=_level(answer),
        celsius=_celsius(answer.get("temperature")),
        health=health.lower() if health in _HEALTH else None,
        watts=_watts(answer),
    )


def _plug(plugged: object) -> str | None:
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


def _watts(answer: dict[str, Any]) -> float | None:
    """From microamperes, whose sign differs from vendor to vendor, and millivolts."""
    sign = _SIGNS.get(str(answer.get("status")))
    microamperes, millivolts = _number(answer.get("current")), _number(answer.get("voltage"))
    if sign is None or microamperes is None or millivolts is None or millivolts <= 0:
        return None
    return sign * abs(microamperes) * millivolts / 1e9


def _celsius(value: object) -> float | None:
    number = _number(value)
    return number if number and is_of_a_battery(number) else None  # some drivers always say exactly zero


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


class TermuxBattery:
    """Sensors that share one answer."""

    def __init__(self, answers: Answers[Battery], source: str = COMMAND) -> None:
        self._answers, self._source = answers, source

    @classmethod
    def by_command(cls, pace: Pace, command: str = COMMAND, timeout_seconds: float = TIMEOUT_SECONDS) -> Self:
        """By polling the command."""
        answers = Background(
            lambda: parse(run([command], timeout_seconds=timeout_seconds)),
            pace,
            idle_seconds=_IDLE_SECONDS,
            training_seconds=_TRAINING_SECONDS,
        )
        return cls(answers, command)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """A sensor for each quantity."""
        return [_Part(self, name, attribute, unit) for name, attribute, unit in _PARTS]

    def reading(self, name: str, attribute: str, unit: str | None, now: datetime) -> Reading:
        """A quantity of the last answer."""
        asked = self._answers.latest(now)
        if asked is None:
            return not_yet(name, unit, self._source, now)
        value = getattr(asked.answer, attribute) if asked.answer is not None else None
        reason = None if value is not None else asked.problem or "not reported"
        return Reading(name=name, value=value, unit=unit, source=self._source, at=asked.at, reason=reason)


#: Name, attribute of an answer, and unit of each reading.
_PARTS = (
    ("power", "external_power", None),
    ("plug", "plug", None),
    ("battery", "level_percent", "%"),
    ("temperature", "celsius", "°C"),
    ("health", "health", None),
    ("battery power", "watts", "W"),
)


@dataclass(frozen=True)
class _Part:
    whole: TermuxBattery
    name: str
    attribute: str
    unit: str | None

    def read(self, now: datetime) -> Reading:
        """See Sensor."""
        return self.whole.reading(self.name, self.attribute, self.unit, now)
