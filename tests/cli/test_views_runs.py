"""What people see of a job's runs: any screen, whatever is missing, whatever it says; and the command that shows it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pocketllm.cli.job_views import job_details
from tests.support.commands import Run
from tests.support.daemon_documents import JOB
from tests.support.daemon_double import DaemonDouble
from tests.support.rendering import rendered

NOW = datetime(2026, 5, 1, 10, 3, tzinfo=UTC)
RUN: dict[str, Any] = {
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


def shown(width: int = 150, **changed: Any) -> str:
    return rendered(job_details(JOB | {"settings": {}, "events": [], "runs": [RUN | changed]}, NOW), width)


def test_a_run_says_why_it_began_and_ended_and_what_it_took() -> None:
    text = shown()
    for part in (
        "2:00:00",
        "1:40:00",
        "80 to 78 %",
        "-3.3 Wh",
        "36 °C",
        "power, battery 80 %",
        "not on external power",
    ):
        assert part in text
    assert "+11.0 Wh" in shown(battery_watt_hours=11.04)


def test_a_run_that_lasts_and_what_no_sensor_told() -> None:
    text = shown(ended_at=None, ended_because=None, battery_ended_percent=None, hottest_battery_celsius=None)
    assert "still running" in text and "80 to" not in text


def test_markup_and_escapes_in_a_reason_are_shown_not_obeyed() -> None:
    text = shown(ended_because="[red]gone\x1b[2J")
    assert "[red]gone" in text and "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_any_screen(width: int) -> None:
    assert all(len(line) <= width for line in shown(width).splitlines())


def test_a_job_is_shown_with_its_runs(run: Run, double: DaemonDouble) -> None:
    double.jobs, double.runs = [dict(JOB)], [RUN]
    assert "not on external power" in run("jobs", "job-1").stdout
    assert '"hottest_battery_celsius": 36.4' in run("jobs", "job-1", "--json").stdout
