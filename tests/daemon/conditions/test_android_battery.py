"""termux-battery-status: each value that it can give, what older apps leave out, what drivers make up."""

import json
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.conditions.android_battery import Battery, battery_sensors, parse, polled_battery
from pocketllm.daemon.conditions.poller import Pace, ProbeFailed
from pocketllm.daemon.conditions.readings import Reading
from tests.support.executables import answering, executable
from tests.support.real_daemon import eventually
from tests.support.workers import NOW

#: A whole answer of the app's version 0.53.
ANSWER: dict[str, Any] = {
    "present": True,
    "technology": "Li-ion",
    "health": "GOOD",
    "plugged": "PLUGGED_AC",
    "status": "CHARGING",
    "temperature": 31.4,
    "voltage": 4123,
    "current": -512000,
    "current_average": None,
    "percentage": 76,
    "level": 76,
    "scale": 100,
    "charge_counter": 3012000,
    "energy": None,
    "cycle": 211,
}


def battery(**changes: Any) -> Battery:
    """What is made of that answer with these changes; ... leaves a key out."""
    said = {key: value for key, value in {**ANSWER, **changes}.items() if value is not ...}
    return parse(json.dumps(said))


def test_a_whole_answer() -> None:
    assert battery() == Battery(
        external_power=True, plug="ac", level_percent=76, celsius=31.4, health="good", watts=2.110976
    )


POWER_ROWS = {
    ("UNPLUGGED", "DISCHARGING"): (False, "none"),
    ("UNPLUGGED", "NOT_CHARGING"): (False, "none"),
    ("UNPLUGGED", "UNKNOWN"): (False, "none"),
    ("PLUGGED_AC", "CHARGING"): (True, "ac"),
    ("PLUGGED_AC", "FULL"): (True, "ac"),
    ("PLUGGED_AC", "NOT_CHARGING"): (True, "ac"),  # a charge limiter
    ("PLUGGED_AC", "DISCHARGING"): (False, "ac"),  # too weak a socket
    ("PLUGGED_AC", "UNKNOWN"): (None, "ac"),
    ("PLUGGED_USB", "CHARGING"): (True, "usb"),
    ("PLUGGED_WIRELESS", "CHARGING"): (True, "wireless"),
    ("PLUGGED_DOCK", "CHARGING"): (True, "dock"),
    ("PLUGGED_16", "CHARGING"): (True, "another"),
    ("PLUGGED_-1", "CHARGING"): (None, None),
    (..., "CHARGING"): (None, None),
    (1, "CHARGING"): (None, None),
    ("PLUGGED_AC", ...): (None, "ac"),
    ("PLUGGED_AC", "5"): (None, "ac"),
}


@pytest.mark.parametrize("row", POWER_ROWS, ids=str)
def test_external_power(row: tuple[Any, Any]) -> None:
    found = battery(plugged=row[0], status=row[1])
    assert (found.external_power, found.plug) == POWER_ROWS[row]


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, 76),
        ({"percentage": 0}, 0),
        ({"percentage": 100}, 100),
        ({"percentage": ..., "level": 30, "scale": 60}, 50),
        ({"percentage": None, "level": 30, "scale": 60}, 50),
        ({"percentage": "76", "level": 30, "scale": 60}, 50),
        ({"percentage": ..., "level": -1, "scale": -1}, None),
        ({"percentage": ..., "level": 30, "scale": 0}, None),
        ({"percentage": ..., "level": ..., "scale": ...}, None),
        ({"percentage": -1}, None),
        ({"percentage": 101}, None),
        ({"percentage": "76", "level": ..., "scale": ...}, None),
        ({"percentage": True, "level": ..., "scale": ...}, None),
        ({"percentage": float("nan"), "level": ..., "scale": ...}, None),
        ({"percentage": float("inf"), "level": ..., "scale": ...}, None),
    ],
    ids=str,
)
def test_level(changes: dict[str, Any], level: float | None) -> None:
    assert battery(**changes).level_percent == level


@pytest.mark.parametrize(
    ("said", "celsius"),
    [
        (31.4, 31.4),
        (-12.0, -12.0),
        (0.0, None),  # what a Chromebook says for ever
        (-214748364.8, None),  # what the app makes of an extra that is not there
        (81.0, None),
        (..., None),
        ("warm", None),
    ],
)
def test_temperature(said: Any, celsius: float | None) -> None:
    assert battery(temperature=said).celsius == celsius


@pytest.mark.parametrize(
    ("said", "health"),
    [
        *((word, word.lower()) for word in ("COLD", "DEAD", "GOOD", "OVERHEAT", "OVER_VOLTAGE", "UNSPECIFIED_FAILURE")),
        *((word, None) for word in ("UNKNOWN", "-1", "7", ...)),
    ],
)
def test_health(said: Any, health: str | None) -> None:
    assert battery(health=said).health == health


@pytest.mark.parametrize(
    ("status", "current", "voltage", "watts"),
    [
        ("CHARGING", 1_500_000, 4000, 6.0),
        ("CHARGING", -1_500_000, 4000, 6.0),  # the sign is the vendor's
        ("DISCHARGING", 500_000, 3800, -1.9),
        ("FULL", 12_000, 4350, 0.0),
        ("UNKNOWN", 500_000, 3800, None),
        ("CHARGING", ..., 4000, None),
        ("CHARGING", "many", 4000, None),
        ("CHARGING", 1_500_000, -1000, None),  # the app does not know
    ],
)
def test_power(status: str, current: Any, voltage: Any, watts: float | None) -> None:
    assert battery(status=status, current=current, voltage=voltage).watts == watts


def test_an_old_apps_answer() -> None:
    said = {
        "health": "GOOD",
        "percentage": 76,
        "plugged": "UNPLUGGED",
        "status": "DISCHARGING",
        "temperature": 25.200000762939453,
        "current": 0,
    }
    found = parse(json.dumps(said))
    assert (found.external_power, found.level_percent) == (False, 76)
    assert found.celsius == pytest.approx(25.2)


@pytest.mark.parametrize("output", ["", "null", "[]", '"x"', "{", "Error: no such service\n", "[" * 100_000])
def test_what_is_no_answer(output: str) -> None:
    with pytest.raises(ProbeFailed):
        parse(output)


def test_an_empty_object_says_nothing() -> None:
    assert parse("{}") == Battery(external_power=None, plug=None, level_percent=None, celsius=None, health=None)


def readings(command: str, seconds: float = 9.0) -> dict[str, Reading]:
    """What the sensors see once the command has answered, or has had its time."""
    sensors = battery_sensors(polled_battery(Pace(), command, seconds), command)

    def look() -> dict[str, Reading] | None:
        found = {reading.name: reading for reading in (sensor.read(NOW) for sensor in sensors)}
        return None if any(reading.reason == "no answer yet" for reading in found.values()) else found

    return eventually(look, "an answer", seconds=20)


def test_a_real_command(tmp_path: Path) -> None:
    found = readings(answering(tmp_path, "termux-battery-status", json.dumps(ANSWER)))
    assert {name: (one.value, one.unit) for name, one in found.items()} == {
        "power": (True, None),
        "plug": ("ac", None),
        "battery": (76, "%"),
        "temperature": (31.4, "°C"),
        "health": ("good", None),
        "battery power": (2.110976, "W"),
    }
    assert all(one.at == NOW and one.source.endswith("termux-battery-status") for one in found.values())


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 600", "did not answer within 0.3 s"),
        ("exit 1", "exited with code 1"),
        ("kill -9 $$", "exited with code -9"),
        ("echo The Termux:API app is not installed", "did not return JSON"),
        ("true", "did not return JSON"),
    ],
)
def test_a_real_command_that_fails(tmp_path: Path, script: str, reason: str) -> None:
    found = readings(executable(tmp_path, "termux-battery-status", script), 0.3 if "sleep" in script else 9.0)
    assert len(found) == 6
    assert all(one.unknown and one.reason and reason in one.reason for one in found.values())
