"""`pocketllm backup`, `restore` and `verify`: all that the daemon has, as one file; and whether it is sound."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, check_target, make_console, program, show, stored, whole_file
from pocketllm.daemon.paths import DataFolder
from pocketllm.errors import EXIT_ERROR, CommandError, UsageError

if TYPE_CHECKING:
    from pocketllm.daemon.tools.backup import Check

PANEL = "Checks and backups"
#: What to do where something is damaged, by the first word of its name.
ADVICE = {
    "database": "Restore a backup: `pocketllm restore FILE`.",
    "adapter": "The daemon serves an ancestor and learns its texts again. Delete it: `pocketllm adapters delete ID`.",
    "model": "Delete its folder in `models` and import it again: `pocketllm models add`.",
    "steps": "The adapter does not match its steps. Serve another: `pocketllm rollback`.",
}


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
    folder = _folder(options)
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


@program.command("pocketllm verify", "pocketllm verify --replay --json", panel=PANEL, without=("url",))
def verify(
    options: Common,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also rebuild the adapters of MeZO jobs from their steps; takes minutes.")
    ] = False,
) -> None:
    """Check the database, adapters and models for damage. The daemon can keep running.

    Exit code 0: no damage. 1: something is damaged.
    """
    from rich.table import Table

    from pocketllm.daemon.tools import backup as tool

    folder = _folder(options)
    with make_console(stderr=True).status("Reading..."):
        checks = list(tool.verify(folder))
        if replay and all(check.problem is None for check in checks):
            checks += _replayed(folder)
    table = Table.grid(padding=(0, 2))
    for check in checks:
        table.add_row("ok" if check.problem is None else "!", check.name, check.problem or "")
    damaged = {check.name.split()[0] for check in checks if check.problem is not None}
    for kind, advice in ADVICE.items():
        if kind in damaged:
            table.add_row("", "what to do", advice)
    sound = all(check.problem is None for check in checks)
    show(options, {"ok": sound, "checks": [asdict(check) for check in checks]}, table)
    raise typer.Exit(0 if sound else EXIT_ERROR)


def _replayed(folder: DataFolder) -> "list[Check]":
    from pocketllm.daemon.tools.replay import replays

    with stored(folder.database) as store:
        return list(replays(folder, store))


def _folder(options: Common) -> DataFolder:
    """The data folder. Raises CommandError when there is no database in it."""
    folder = options.folder
    if not folder.database.is_file():
        raise CommandError(f"There is no database {folder.database}. Give the data folder with --data-dir.")
    return folder
