"""What people see of the runs: any screen, whatever is missing, whatever it says; and the command that shows it."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pocketllm.cli.jobs.runs_view import runs_tables
from tests.support.commands import commands
from tests.support.daemon_double import DaemonDouble

WINDOW: dict[str, Any] = {
    "job": "job-1",
    "began_at": "2026-03-01T23:10:00Z",
    "ended_at": "2026-03-02T01:10:00Z",
    "seconds": 7200.0,
    "began_because": "power, battery 80 %",
    "ended_because": "not on external power",
    "cpu_seconds": 6000.0,
    "battery_began_percent": 80.0,
    "battery_ended_percent": 78.0,
    "battery_watt_hours": -3.26,
    "hottest_battery_celsius": 36.4,
    "hottest_zone_celsius": None,
}
DAY = {
    "day": "2026-03-01",
    "runs": 1,
    "seconds": 7200.0,
    "cpu_seconds": 6000.0,
    "battery_lost_percent": 2.0,
    "battery_watt_hours": 11.04,
    "hottest_battery_celsius": 36.4,
    "nats_per_hour": 0.123,
}


def shown(width: int = 150, **changed: Any) -> str:
    console = Console(file=io.StringIO(), width=width, emoji=False, highlight=False)
    console.print(runs_tables({"data": [WINDOW | changed], "days": [DAY]}, days=7))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_says_why_it_began_and_ended_and_what_it_took() -> None:
    text = shown()
    assert "-3.3 Wh" in text and "+11.0 Wh" in text and "0.12 nats" in text
    for part in ("2:00:00", "80 to 78 %", "36 °C", "power, battery 80 %", "not on external power", "2026-03-01"):
        assert part in text


def test_a_run_that_lasts_and_what_no_sensor_told() -> None:
    text = shown(ended_at=None, ended_because=None, battery_ended_percent=None, hottest_battery_celsius=None)
    assert "still running" in text and "80 to" not in text


def test_markup_and_escapes_in_a_reason_are_shown_not_obeyed() -> None:
    text = shown(ended_because="[red]gone\x1b[2J")
    assert "[red]gone" in text and "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_any_screen(width: int) -> None:
    assert all(len(line) <= width for line in shown(width).splitlines())


def test_no_runs_says_what_to_do() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(runs_tables({"data": [], "days": []}, days=3))
    assert isinstance(console.file, io.StringIO)
    assert "No worker ran in the last 3 days" in console.file.getvalue()
    assert "pocketllm status" in console.file.getvalue()


def test_the_command_asks_for_so_many_days(tmp_path: Path) -> None:
    with DaemonDouble() as double:
        double.runs = {"data": [WINDOW], "days": [DAY]}
        run = commands(double.write_home(tmp_path))
        assert "not on" in run("jobs", "--runs", "--days", "2").stdout
        assert ("GET", "/runs?days=2", None) in double.requests
        assert '"hottest_battery_celsius": 36.4' in run("jobs", "--runs", "--json").stdout
    assert run("jobs", "--runs", "--days", "0").exit_code == 2
