"""The runs of a job: when workers ran, why, and what they used."""

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table
from rich.text import Text

from pocketllm.cli.views import UNKNOWN, duration_text, printable
from pocketllm.errors import Document


def runs_table(runs: Sequence[Document]) -> Table:
    """Return a job's runs, oldest first as given."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Started", "Took", "CPU", "Battery", "Into battery", "Hottest", "Start reason", "Stop reason"):
        table.add_column(heading, overflow="fold")
    for run in runs:
        ended = run["ended_because"]
        table.add_row(
            f"{datetime.fromisoformat(run['began_at']).astimezone():%a %d %b %H:%M}",
            duration_text(run["seconds"]),
            duration_text(run["cpu_seconds"]),
            _battery(run),
            _watt_hours(run["battery_watt_hours"]),
            _celsius(run["hottest_battery_celsius"]),
            Text(printable(run["began_because"])),
            Text("still running", style="cyan") if ended is None else Text(printable(ended)),
        )
    return table


def _battery(run: Document) -> str:
    began, ended = run["battery_began_percent"], run["battery_ended_percent"]
    return UNKNOWN if began is None or ended is None else f"{began:.0f} to {ended:.0f} %"


def _watt_hours(value: float | None) -> str:
    """Below zero: the battery gave more than it got."""
    return UNKNOWN if value is None else f"{value:+.1f} Wh"


def _celsius(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} °C"
