"""`pocketllm jobs --runs`: when workers ran, why, and what they used."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pocketllm.cli.errors import Document
from pocketllm.cli.views import UNKNOWN, duration_text, printable


def runs_tables(found: Document, *, days: int) -> RenderableType:
    """Return the runs, newest first, followed by the days."""
    if not found["data"]:
        return Text(f"No worker ran in the last {days} days. `pocketllm status` shows what blocks it.")
    runs = Table(title="Runs", title_justify="left")
    for heading in ("Started", "Took", "CPU", "Battery", "Into battery", "Hottest", "Start reason", "Stop reason"):
        runs.add_column(heading, overflow="fold")
    for window in reversed(found["data"]):
        ended = window["ended_because"]
        runs.add_row(
            _time(window["began_at"]),
            duration_text(window["seconds"]),
            duration_text(window["cpu_seconds"]),
            _battery(window),
            _watt_hours(window["battery_watt_hours"]),
            _celsius(window["hottest_battery_celsius"]),
            Text(printable(window["began_because"])),
            Text("still running", style="cyan") if ended is None else Text(printable(ended)),
        )
    by_day = Table(title="Days", title_justify="left")
    for heading in ("Day", "Runs", "Took", "CPU", "Battery lost", "Into battery", "Hottest", "Gain per hour"):
        by_day.add_column(heading)
    for day in reversed(found["days"]):
        by_day.add_row(
            day["day"],
            str(day["runs"]),
            duration_text(day["seconds"]),
            duration_text(day["cpu_seconds"]),
            f"{day['battery_lost_percent']:.0f} %",
            _watt_hours(day["battery_watt_hours"]),
            _celsius(day["hottest_battery_celsius"]),
            UNKNOWN if day["nats_per_hour"] is None else f"{day['nats_per_hour']:.2f} nats",
        )
    return Group(runs, by_day)


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%a %d %b %H:%M}"


def _battery(window: Document) -> str:
    began, ended = window["battery_began_percent"], window["battery_ended_percent"]
    return UNKNOWN if began is None or ended is None else f"{began:.0f} to {ended:.0f} %"


def _watt_hours(value: float | None) -> str:
    """Below zero: the battery gave more than it got."""
    return UNKNOWN if value is None else f"{value:+.1f} Wh"


def _celsius(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} °C"
