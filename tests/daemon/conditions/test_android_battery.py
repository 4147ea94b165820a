"""termux-battery-status: each value that it can give, what older apps leave out, what drivers make up."""

import json
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.conditions.android_battery import battery_sensors, parse, polled_battery
from pocketllm.daemon.conditions.poller import Pace
from pocketllm.daemon.conditions.readings import Value
from pocketllm.daemon.errors import ChildFailed
from tests.support.daemon.gate_world import answered
from tests.support.executables import answering

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


def battery(**changes: Any) -> dict[str, Value]:
    """What is made of that answer with these changes; ... leaves a key out."""
    said = {key: value for key, value in {**ANSWER, **changes}.items() if value is not ...}
    return parse(json.dumps(said))


def test_a_whole_answer_and_an_empty_one() -> None:
    whole = {"power": True, "plug": "ac", "battery": 76, "temperature": 31.4, "health": "good"}
    assert battery() == whole
    assert parse("{}") == dict.fromkeys(whole)


def test_external_power() -> None:
    rows = {
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
    found = {(plugged, status): battery(plugged=plugged, status=status) for plugged, status in rows}
    assert {row: (one["power"], one["plug"]) for row, one in found.items()} == rows


def test_level() -> None:
    """By the percentage, else by the level and its scale."""
    rows = {
        (76, 76, 100): 76,
        (0, 76, 100): 0,
        (100, 76, 100): 100,
        (..., 30, 60): 50,
        (None, 30, 60): 50,
        ("76", 30, 60): 50,
        (..., -1, -1): None,
        (..., 30, 0): None,
        (..., ..., ...): None,
        (-1, 76, 100): None,
        (101, 76, 100): None,
        ("76", ..., ...): None,
        (True, ..., ...): None,
        (float("inf"), ..., ...): None,
    }
    found = {row: battery(**dict(zip(("percentage", "level", "scale"), row, strict=True))) for row in rows}
    assert {row: one["battery"] for row, one in found.items()} == rows


def test_temperature() -> None:
    rows = {
        31.4: 31.4,
        -12.0: -12.0,
        0.0: None,  # what a Chromebook says for ever
        -214748364.8: None,  # what the app makes of an extra that is not there
        81.0: None,
        ...: None,
        "warm": None,
    }
    assert {said: battery(temperature=said)["temperature"] for said in rows} == rows


def test_health() -> None:
    words = ("COLD", "DEAD", "GOOD", "OVERHEAT", "OVER_VOLTAGE", "UNSPECIFIED_FAILURE")
    assert [battery(health=word)["health"] for word in words] == [word.lower() for word in words]
    assert [battery(health=word)["health"] for word in ("UNKNOWN", "-1", "7", ...)] == [None] * 4


def test_what_is_no_answer() -> None:
    for output in ("", "null", "[]", '"x"', "{", "Error: no such service\n", "[" * 100_000):
        with pytest.raises(ChildFailed):
            parse(output)


def test_a_real_command_that_fails(tmp_path: Path) -> None:
    """How else commands fail, test_poller says."""
    command = answering(tmp_path, "termux-battery-status", "The Termux:API app is not installed")
    found = answered(battery_sensors(polled_battery(Pace(), command), command))
    assert len(found) == 5
    assert all(one.unknown and "did not return JSON" in str(one.reason) for one in found.values())
    assert found["battery"].source == command
    assert "the app Termux:API (com.termux.api)" in str(found["battery"].reason)
