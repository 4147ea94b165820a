"""`pocketllm folders`: the folders that are watched. Works without a daemon."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, examples, local_options, make_console, show
from pocketllm.cli.importing import MAX_SOURCE, AsWritten, Me
from pocketllm.errors import CommandError, UsageError
from pocketllm.home import configured_data_dir

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pocketllm.daemon.folders import Scan
    from pocketllm.daemon.paths import DataFolder

#: How long another scan may take before a command gives up.
PATIENCE_SECONDS = 60.0

folders_app = typer.Typer(invoke_without_command=True)
Place = Annotated[Path, typer.Argument(metavar="FOLDER", help="Path of the folder.")]


@folders_app.callback(epilog=examples("pocketllm folders", "pocketllm folders add ~/notes", "pocketllm folders --json"))
@local_options
def folders(options: Common, ctx: typer.Context) -> None:
    """Manage the watched folders, whose notes, mail and chats the model learns from.

    The daemon scans them every hour, and before each job that it starts by itself. Without a command, lists them.
    """
    if ctx.invoked_subcommand is None:
        from pocketllm.daemon.folders import scans

        show_scans(options, scans(data_folder(options)))


@folders_app.command("add", epilog=examples("pocketllm folders add ~/notes", "pocketllm folders add ~/chats --me Anna"))
@local_options
def add_folder(
    options: Common,
    folder: Place,
    me: Me = None,
    name: Annotated[str | None, typer.Option(help="Source of its texts. Default: the folder's name.")] = None,
    as_written: AsWritten = False,
) -> None:
    """Watch a folder: learn what you write there, and forget what you delete there.

    Skips hidden files, copies made by sync programs, and files listed in its .pocketllmignore (.gitignore syntax).
    """
    from pocketllm.daemon.folders import WatchedFolder, watched_folders, write_folders

    path = folder.expanduser().resolve()
    if not path.is_dir():
        raise CommandError(f"There is no folder {path}.")
    source = name or path.name
    if not 1 <= len(source) <= MAX_SOURCE:
        raise UsageError(f"--name has {len(source)} characters; it must have 1 to {MAX_SOURCE}.")
    data = data_folder(options)
    added = WatchedFolder(path=str(path), name=source, me=tuple(me or ()), as_written=as_written)
    others = [one for one in watched_folders(data) if one.path != added.path]
    for other in (Path(one.path) for one in others):
        if path.is_relative_to(other) or other.is_relative_to(path):
            raise CommandError(f"{path} overlaps the watched folder {other}. Remove {other} first.")
    write_folders(data, [*others, added])
    scan_now(options, data)


@folders_app.command("remove", epilog=examples("pocketllm folders remove ~/notes"))
@local_options
def remove_folder(options: Common, folder: Place) -> None:
    """Stop watching a folder. Its texts stay; `pocketllm texts delete --source NAME` deletes them."""
    from pocketllm.daemon.folders import scans, watched_folders, write_folders

    data, path = data_folder(options), str(folder.expanduser().resolve())
    watched = watched_folders(data)
    kept = [one for one in watched if one.path != path]
    if len(kept) == len(watched):
        raise CommandError(f"{path} is not watched. `pocketllm folders` lists the watched folders.")
    write_folders(data, kept)
    show_scans(options, scans(data))


@folders_app.command("scan", epilog=examples("pocketllm folders scan", "pocketllm folders scan --forget"))
@local_options
def scan_folders(
    options: Common,
    forget: Annotated[bool, typer.Option("--forget", help="Forget the missing files, however many there are.")] = False,
) -> None:
    """Scan the watched folders now."""
    scan_now(options, data_folder(options), forget=forget)


def scan_now(options: Common, data: "DataFolder", *, forget: bool = False) -> None:
    """Scan all folders, name each file that is read, and show the list. Raises CommandError."""
    from pocketllm.cli.views import printable
    from pocketllm.daemon.locks import locked
    from pocketllm.daemon.settings import load_settings
    from pocketllm.folders import scan_all
    from pocketllm.storage.store import Store

    with locked(data.scan_lock, wait_seconds=PATIENCE_SECONDS) as acquired:
        if not acquired:
            raise CommandError("Another scan is running. Try again in a minute.")
        store = Store.open(data.database)
        try:
            with make_console(stderr=True).status("Scanning ...") as status:
                found = scan_all(
                    data,
                    store.folders,
                    now=lambda: datetime.now(UTC),
                    max_bytes=load_settings({"data_dir": data.root}).max_text_bytes,
                    forget=forget,
                    on_file=lambda name: status.update(f"Reading {printable(name)}"),
                )
        finally:
            store.close()
    show_scans(options, found)


def show_scans(options: Common, found: "Sequence[Scan]") -> None:
    """Show the watched folders with their last scans."""
    show(options, {"data": [one.model_dump(mode="json") for one in found]}, scans_table(found))


def scans_table(found: "Sequence[Scan]") -> "RenderableType":
    """Return the folders as a table, with what is wrong below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from pocketllm.cli.views import age_text, printable

    if not found:
        return Text("No folder is watched. Add one: `pocketllm folders add ~/notes`.")
    table = Table("Folder", "Texts", "Scanned", box=None, pad_edge=False, header_style="bold")
    for one in found:
        at = one.scanned_at.isoformat() if one.scanned_at else None
        table.add_row(Text(printable(one.path)), f"{one.texts:,}", age_text(at, datetime.now(UTC)))
    lines = [Text(f"{printable(one.path)}: {said}", style="yellow") for one in found for said in troubles(one)]
    return Group(table, *lines)


def troubles(one: "Scan") -> Iterator[str]:
    """Yield what is wrong with a folder, and what to do."""
    from pocketllm.cli.views import printable

    if one.problem:
        yield one.problem
    if one.unreadable:
        yield f"{one.unreadable:,} files or folders in it cannot be opened."
    if one.nobodys:
        said = f"{printable(one.nobodys[0])}{' and others' if one.nobodys[1:] else ''}"
        yield f"None of the names in {said} is yours. Add the folder again with --me NAME."
    if one.vanished:
        yield f"{one.vanished:,} files are missing. If you deleted them: `pocketllm folders scan --forget`."


def data_folder(options: Common) -> "DataFolder":
    """Return the data folder, made if it is missing."""
    from pocketllm.daemon.paths import DataFolder

    folder = DataFolder(options.data_dir or configured_data_dir())
    folder.make()
    return folder
