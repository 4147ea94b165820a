"""`pocketllm doctor`: what works on this machine, what is unknown, and what to do about it."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, make_console, program, show
from pocketllm.errors import CommandError
from pocketllm.home import running_settings

if TYPE_CHECKING:
    from pocketllm.daemon.settings import Settings
    from pocketllm.daemon.tools.doctor import Examination

Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Also rehearse a night; write a report to a new file.")
]
_SIGNS = {"good": ("ok", "green"), "unknown": ("?", "yellow"), "bad": ("!", "red")}


@program.command(
    "pocketllm doctor",
    "pocketllm doctor --json",
    "pocketllm doctor --report phone.json",
    panel="Checks and backups",
    without=("url",),
)
def doctor(options: Common, report: Report = None) -> None:
    """Check what works, what is unknown and what is missing, and show what to do. Needs no daemon.

    Uses the settings of the daemon running on the data folder, or those that it would start with. Exit code 0: nothing
    prevents jobs. 1: something does.

    With --report, also rehearses a night, for a minute or more: a short job on sample notes, a killed worker, a
    generated text. The report contains versions, readings and times, but no text of yours.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from pocketllm.daemon.conditions.discovery import Places, discover_sensors
    from pocketllm.daemon.paths import DataFolder
    from pocketllm.daemon.settings import load_settings
    from pocketllm.daemon.tools.doctor import examine

    running = running_settings(options.folder.root)
    settings = load_settings(running or ({} if options.data_dir is None else {"data_dir": options.data_dir}))
    places = Places(supplies=settings.power_supplies)
    sensor_set = discover_sensors(settings.data_dir, DataFolder(settings.data_dir).idle_stamp, places)
    if report is not None and report.exists():
        raise CommandError(f"{report} already exists. Give a new file name.")
    examination = examine(settings, sensor_set, places, lambda: datetime.now(UTC))
    findings = examination.findings
    bad = [finding for finding in findings if finding.state == "bad"]
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        sign, style = _SIGNS[finding.state]
        table.add_row(Text(sign, style=style), finding.name, finding.message)
        if finding.advice:
            table.add_row("", "", Text(f"-> {finding.advice}", style="dim"))
    document = {"ok": not bad, "findings": [asdict(finding) for finding in findings]}
    verdict = f"Problems that prevent jobs: {len(bad)}." if bad else "Nothing prevents jobs from running."
    show(options, document, Group(table, verdict))
    if report is not None:
        _write_report(report, settings, examination)
    raise typer.Exit(1 if bad else 0)


def _write_report(file: Path, settings: "Settings", examination: "Examination") -> None:
    from pocketllm.device_report import device_report, summary, write_report

    console = make_console(stderr=True)
    with console.status("Rehearsing ...") as status:
        made = device_report(settings, examination, say=lambda text: status.update(f"Rehearsing: {text} ..."))
    write_report(file, made)
    console.print(summary(made))
    console.print(f"Wrote {file}. Read it, then attach it to an issue: it helps owners of similar devices.")
