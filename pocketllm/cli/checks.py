"""Commands on the data folder itself, for which no daemon need run: doctor, backup, restore and verify."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.program import Common, check_database, check_target, daemon_settings, make_console, program, show
from pocketllm.engine.formats.atomic import whole_file
from pocketllm.errors import EXIT_ERROR, UsageError

PANEL = "Checks and backups"
#: How findings of the doctor are marked.
SIGNS = {"good": ("ok", "green"), "unknown": ("?", "yellow"), "bad": ("!", "red")}
#: What to do where something is damaged, by the first word of its name.
ADVICE = {
    "database": "Restore a backup: `pocketllm restore FILE`.",
    "adapter": "The daemon serves an ancestor and learns its texts again. Delete it: `pocketllm adapters delete ID`.",
    "model": "Delete its folder in `models` and import it again: `pocketllm models add`.",
}


@program.command("pocketllm doctor", "pocketllm doctor --json > phone.json", panel=PANEL, without=("url",))
def doctor(options: Common) -> None:
    """Check what works, what is unknown and what is missing, and show what to do. Needs no daemon.

    Uses the settings of the daemon running on the data folder, or those that it would start with. Exit code 0: nothing
    prevents jobs. 1: something does. With --json, also tells the device, versions, readings and speeds, but no text of
    yours.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from pocketllm.cli.device_report import device_report
    from pocketllm.daemon.conditions.discovery import Places, discover_sensors
    from pocketllm.daemon.tools.doctor import examine

    settings = daemon_settings(options)
    places = Places(supplies=settings.power_supplies)
    sensor_set = discover_sensors(settings.data_dir, options.folder.idle_stamp, places)
    examination = examine(settings, sensor_set, places, lambda: datetime.now(UTC))
    grid = Table.grid(padding=(0, 2))
    for finding in examination.findings:
        grid.add_row(Text(*SIGNS[finding.state]), finding.name, finding.message)
        if finding.advice:
            grid.add_row("", "", Text(f"-> {finding.advice}", style="dim"))
    bad = sum(finding.state == "bad" for finding in examination.findings)
    verdict = f"Problems that prevent jobs: {bad}." if bad else "Nothing prevents jobs from running."
    show(options, device_report(settings, examination), Group(grid, verdict))
    raise typer.Exit(EXIT_ERROR if bad else 0)


@program.command(
    "pocketllm backup pocketllm.tar", "pocketllm backup pocketllm.tar --force", panel=PANEL, without=("url",)
)
def backup(
    options: Common,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, readable only by you.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Back up texts, jobs, adapters and access tokens to one file. The daemon can keep running.

    Models are not included; `pocketllm models add` imports them again. Anyone with the file can read all your texts.
    """
    from pocketllm.daemon.leftovers import noted_backup
    from pocketllm.daemon.tools.backup import write_backup

    check_target(file, force=force)
    folder = options.folder
    check_database(folder)
    with noted_backup(folder, file), whole_file(file) as target:
        contents = write_backup(folder, target, now=datetime.now(UTC))
    view = f"Wrote {file}: {contents.texts:,} texts, {contents.jobs:,} jobs and {contents.adapters:,} adapters."
    show(options, asdict(contents) | {"file": str(file)}, view)


@program.command(
    "pocketllm restore pocketllm.tar", "pocketllm restore pocketllm.tar --yes", panel=PANEL, without=("url",)
)
def restore(
    options: Common,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Backup written by `pocketllm backup`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Replace the contents of the data folder with a backup. Stop the daemon first.

    The previous contents move to a subfolder, whose path the command prints.
    """
    from pocketllm.daemon.tools import backup as tool

    folder = options.folder
    if folder.database.exists() and not yes:
        if options.json:
            raise UsageError("The data folder already has a database. Give --yes to replace it.")
        typer.confirm(f"Replace the texts, jobs and adapters in {folder.root} with those in {file}?", abort=True)
    contents, former = tool.restore(file, folder, now=datetime.now(UTC))
    view = f"Restored {contents.texts:,} texts, {contents.jobs:,} jobs and {contents.adapters:,} adapters."
    if former is not None:
        view += f" The previous contents are in {former}; delete it when you no longer need it."
    show(options, asdict(contents) | {"former": None if former is None else str(former)}, view)


@program.command("pocketllm verify", "pocketllm verify --json", panel=PANEL, without=("url",))
def verify(options: Common) -> None:
    """Check the database, adapters and models for damage. The daemon can keep running.

    Exit code 0: no damage. 1: something is damaged.
    """
    from pocketllm.cli.views import table
    from pocketllm.daemon.tools import backup as tool

    check_database(options.folder)
    with make_console(stderr=True).status("Reading..."):
        checks = list(tool.verify(options.folder))
    rows = [{"": "ok" if check.problem is None else "!", **asdict(check)} for check in checks]
    damaged = {check.name.split()[0] for check in checks if check.problem is not None}
    rows += [{"": "", "name": "what to do", "problem": ADVICE[kind]} for kind in ADVICE if kind in damaged]
    document = {"ok": not damaged, "checks": [asdict(check) for check in checks]}
    show(options, document, table(rows, ("", "name", "problem")))
    raise typer.Exit(EXIT_ERROR if damaged else 0)
