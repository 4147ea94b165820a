"""The phone's battery, as termux-battery-status tells it: plug, level, temperature and health in one answer.

What older apps leave out is unknown, and so is what a vendor's driver makes up. Plugged in and yet discharging is a
charger too weak to count as external power.
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
#: It takes a second as a rule and seven on slow phones.
TIMEOUT_SECONDS = 10.0
_IDLE_SECONDS, _TRAINING_SECONDS = 60.0, 5.0
#: Of the word behind PLUGGED_; -1 is what the app says when it does not know.
_PLUGS = {"AC": "ac", "USB": "usb", "WIRELESS": "wireless", "DOCK": "dock"}
#: Words for a state in which a plugged phone takes nothing from its battery.
_ON_POWER = ("CHARGING", "FULL", "NOT_CHARGING")
_STATES = (*_ON_POWER, "DISCHARGING")
_HEALTH = ("COLD", "DEAD", "GOOD", "OVERHEAT", "OVER_VOLTAGE", "UNSPECIFIED_FAILURE")


@dataclass(frozen=True, kw_only=True)
class Battery:
    """What an answer says; None is unknown."""

    external_power: bool | None
    plug: str | None  #: "ac", "usb", "wireless", "dock", "another"; "none"
    level_percent: float | None
    celsius: float | None
    health: str | None  #: in small letters


def parse(output: str) -> Battery:
    """Raises ProbeFailed for what is no answer at all."""
    try:
        said = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise ProbeFailed(f"{COMMAND} did not answer in JSON") from error
    if not isinstance(said, dict):
        raise ProbeFailed(f"{COMMAND} did not answer with an object")
    plug, health = _plug(said.get("plugged")), said.get("health")
    return Battery(
        external_power=_external_power(plug, said.get("status")),
        plug=plug,
        level_percent=_level(said),
        celsius=_celsius(said.get("temperature")),
        health=health.lower() if health in _HEALTH else None,
    )


def _plug(said: object) -> str | None:
    if said == "UNPLUGGED":
        return "none"
    if not isinstance(said, str) or not said.startswith("PLUGGED_") or said == "PLUGGED_-1":
        return None
    return _PLUGS.get(said.removeprefix("PLUGGED_"), "another")


def _external_power(plug: str | None, status: object) -> bool | None:
    if plug == "none":
        return False
    if plug is None or status not in _STATES:
        return None
    return status in _ON_POWER


def _level(said: dict[str, Any]) -> float | None:
    level = _number(said.get("percentage"))
    if level is None:
        part, whole = _number(said.get("level")), _number(said.get("scale"))
        level = 100 * part / whole if part is not None and whole is not None and whole > 0 else None
    return level if level is not None and 0 <= level <= 100 else None


def _celsius(said: object) -> float | None:
    number = _number(said)
    return number if number and is_of_a_battery(number) else None  # exactly zero is what some drivers say for ever


def _number(said: object) -> float | None:
    if isinstance(said, bool) or not isinstance(said, int | float) or not isfinite(said):
        return None
    return float(said)


class TermuxBattery:
    """Its sensors share one answer."""

    def __init__(self, answers: Answers[Battery], source: str = COMMAND) -> None:
        self._answers, self._source = answers, source

    @classmethod
    def by_command(cls, pace: Pace, command: str = COMMAND, timeout_seconds: float = TIMEOUT_SECONDS) -> Self:
        """By asking the command now and then."""
        answers = Background(
            lambda: parse(run([command], timeout_seconds=timeout_seconds)),
            pace,
            idle_seconds=_IDLE_SECONDS,
            training_seconds=_TRAINING_SECONDS,
        )
        return cls(answers, command)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """One for each thing that it tells."""
        return [_Part(self, name, attribute, unit) for name, attribute, unit in _PARTS]

    def reading(self, name: str, attribute: str, unit: str | None, now: datetime) -> Reading:
        """One thing of the last answer."""
        asked = self._answers.latest(now)
        if asked is None:
            return not_yet(name, unit, self._source, now)
        value = getattr(asked.answer, attribute) if asked.answer is not None else None
        reason = None if value is not None else asked.problem or "it does not say"
        return Reading(name=name, value=value, unit=unit, source=self._source, at=asked.at, reason=reason)


#: Names of the readings, and where an answer holds them.
_PARTS = (
    ("power", "external_power", None),
    ("plug", "plug", None),
    ("battery", "level_percent", "%"),
    ("temperature", "celsius", "°C"),
    ("health", "health", None),
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
