"""`pocketllm folders`, `texts` and `export`: the watched folders, and the texts that the daemon has."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketllm.cli.importing import MAX_SOURCE, AsWritten, Me, counted
from pocketllm.cli.program import (
    Common,
    ShowByDefault,
    check_target,
    connected,
    daemon_settings,
    given,
    make_console,
    program,
    show,
)
from pocketllm.daemon.paths import is_there
from pocketllm.engine.formats.atomic import whole_file
from pocketllm.errors import CommandError, DaemonRefused, Document, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pocketllm.client import Client
    from pocketllm.daemon.folder_scans import Scan

PANEL = "Your texts"
#: How long another scan may take before a command gives up.
OTHER_SCAN_SECONDS = 60.0
#: The most texts that the daemon gives in a page.
MAX_LISTED = 500
#: Texts of a page while exporting: it is held in memory at both ends, and a text may be a megabyte.
PAGE_TEXTS = 50

Place = Annotated[Path, typer.Argument(metavar="FOLDER", help="Path of the folder.")]
TextId = Annotated[str, typer.Argument(metavar="ID", help="Text id or its first characters; see `pocketllm texts`.")]


@program.group(
    "pocketllm folders", "pocketllm folders add ~/notes", "pocketllm folders --json", panel=PANEL, without=("url",)
)
def folders(options: Common) -> None:
    """Manage the watched folders, whose notes, mail and chats the model learns from, or whose adapters it takes.

    The daemon scans them every hour, and before each job that it starts by itself. Without a command, lists them.
    """
    from pocketllm.daemon.folder_scans import scans

    options.folder.make()
    show_scans(options, scans(options.folder))


@folders.command(
    "pocketllm folders add ~/notes", "pocketllm folders add ~/chats --me Anna", name="add", without=("url",)
)
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
    watch(options, folder, name=name, me=tuple(me or ()), as_written=as_written)


def watch(options: Common, folder: Path, *, name: str | None = None, **given: Any) -> None:
    """Watch a folder, and scan it. Raises CommandError."""
    from pocketllm.daemon.folder_scans import WatchedFolder, changed_folders

    path = folder.expanduser().resolve()
    if not is_there(path) or not path.is_dir():
        raise CommandError(f"There is no folder {path}.")
    source = name or path.name
    if not 1 <= len(source) <= MAX_SOURCE:
        raise UsageError(f"--name has {len(source)} characters; it must have 1 to {MAX_SOURCE}.")
    options.folder.make()
    added = WatchedFolder(path=str(path), name=source, **given)
    with changed_folders(options.folder) as watched:
        others = [one for one in watched if one.path != added.path]
        for other in (Path(one.path) for one in others):
            if path.is_relative_to(other) or other.is_relative_to(path):
                raise CommandError(f"{path} overlaps the watched folder {other}. Remove {other} first.")
        watched[:] = [*others, added]
    scan_now(options)


@folders.command("pocketllm folders remove ~/notes", name="remove", without=("url",))
def remove_folder(options: Common, folder: Place) -> None:
    """Stop watching a folder. Its texts stay; `pocketllm texts delete --source NAME` deletes them."""
    from pocketllm.daemon.folder_scans import changed_folders, scans

    options.folder.make()
    path = str(folder.expanduser().resolve())
    with changed_folders(options.folder) as watched:
        kept = [one for one in watched if one.path != path]
        if len(kept) == len(watched):
            raise CommandError(f"{path} is not watched. `pocketllm folders` lists the watched folders.")
        watched[:] = kept
    show_scans(options, scans(options.folder))


@folders.command("pocketllm folders scan", "pocketllm folders scan --forget", name="scan", without=("url",))
def scan_folders(
    options: Common,
    forget: Annotated[bool, typer.Option("--forget", help="Forget the missing files, however many there are.")] = False,
) -> None:
    """Scan the watched folders now."""
    options.folder.make()
    scan_now(options, forget=forget)


def scan_now(options: Common, *, forget: bool = False) -> None:
    """Scan all folders, name each file that is read, and show the list. Raises CommandError."""
    from pocketllm.added_adapters import take_newest
    from pocketllm.cli.views import printable
    from pocketllm.daemon.locks import locked
    from pocketllm.scan import scan_all
    from pocketllm.storage.store import Store

    data = options.folder
    with locked(data.scan_lock, wait_seconds=OTHER_SCAN_SECONDS) as acquired:
        if not acquired:
            raise CommandError("Another scan is running. Try again in a minute.")
        settings = daemon_settings(options)
        with (
            closing(Store.open_unchecked(data.database)) as store,
            make_console(stderr=True).status("Scanning ...") as status,
        ):
            found = scan_all(
                data,
                store.folders,
                now=lambda: datetime.now(UTC),
                max_bytes=settings.max_text_bytes,
                forget=forget,
                on_file=lambda name: status.update(f"Reading {printable(name)}"),
                take_adapter=lambda watched, last: take_newest(
                    watched, last, data, store, settings, now=datetime.now(UTC)
                ),
            )
            withdrawn = store.adapters.withdrawn(settings.model)
    show_scans(options, found, withdrawn)


def show_scans(options: Common, found: "Sequence[Scan]", withdrawn: str | None = None) -> None:
    """Show the watched folders with their last scans, what is wrong with them, and why the adapter is withdrawn."""
    from rich.console import Group
    from rich.text import Text

    from pocketllm.cli.views import WITHDRAWN, printable, table

    rows = [one.model_dump(mode="json") for one in found]
    empty = "No folder is watched. Add one: `pocketllm folders add ~/notes`."
    wrong = [Text(printable(f"{one.path}: {said}"), style="yellow") for one in found for said in troubles(one)]
    if withdrawn == "deletion":
        wrong.append(Text(f"Your adapter is {WITHDRAWN[withdrawn]}.", style="yellow"))
    show(
        options,
        {"data": rows} | given(withdrawn=withdrawn),
        Group(table(rows, ("path", "texts", "scanned_at"), empty=empty), *wrong),
    )


def troubles(one: "Scan") -> Iterator[str]:
    """Yield what is wrong with a folder, and what to do."""
    if one.problem:
        yield one.problem
    if one.unreadable:
        yield f"{one.unreadable:,} files or folders in it cannot be read, or have names that are not UTF-8."
    if one.nobodys:
        said = f"{one.nobodys[0]}{' and others' if one.nobodys[1:] else ''}"
        yield f"None of the names in {said} is yours. Add the folder again with --me NAME."
    if one.vanished:
        yield f"{one.vanished:,} files are missing. If you deleted them: `pocketllm folders scan --forget`."


@program.group(
    "pocketllm texts",
    "pocketllm texts ID",
    "pocketllm texts delete ID ID",
    'pocketllm texts --query "ferry timetable"',
    "pocketllm texts --limit 100 --after ID",
    "pocketllm texts --json",
    panel=PANEL,
    cls=ShowByDefault,
)
def texts(
    options: Common,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="Number of texts to show.")] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Start after this text, the last one of the previous page.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="WORDS", help="Show texts that contain any of these words, best match first."),
    ] = None,
) -> None:
    """List, show (`pocketllm texts ID`) or delete texts.

    Without a command, lists them with their first words, newest first. `pocketllm export` writes them all to a file.
    """
    with connected(options) as client:
        page = client.get("texts", limit=limit, after=after, query=query)
    show(options, page, texts_list(page, query))


@texts.command("pocketllm texts show ID", "pocketllm texts ID", "pocketllm texts ID --json", name="show")
def show_text(options: Common, text_id: TextId) -> None:
    """Show a whole text."""
    with connected(options) as client:
        text = client.get("texts", text_id)
    show(options, text, text_details(text), soft_wrap=True)


@texts.command(
    "pocketllm texts delete ID ID",
    "pocketllm texts delete --source notes",
    "pocketllm texts delete ID --yes",
    name="delete",
)
def delete_texts(
    options: Common,
    text_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Text ids; see `pocketllm texts`.")
    ] = None,
    source: Annotated[str, typer.Option(help="Delete every text from this source.")] = "",
    app: Annotated[str, typer.Option(metavar="NAME", help="Delete every text that only this app sent.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete texts, and overwrite their bytes on disk. With an unknown id, nothing is deleted.

    Adapters that learned from the texts are no longer served, and a job is queued to train again on the rest. If an
    adapter is affected, or you use --source or --app, the command shows the cost and asks for confirmation.
    """
    if sum(map(bool, (text_ids, source, app))) != 1:
        raise UsageError("Give ids, or one of --source and --app.")
    which = {"id": text_ids, "source": source or None}
    with connected(options) as client:
        cost = client.get("deletions", "cost", app=app or None, **which)
        said = (f"{cost['texts']:,} texts. " * bool(source or app) + cost["summary"]).strip()
        if said and not yes:
            if options.json:
                raise UsageError(f"{said} Give --yes to delete anyway.")
            typer.confirm(f"{said} Delete?", abort=True)
        receipt = client.delete("apps", app, "texts") if app else client.delete("texts", **which)
    show(options, receipt, receipt["summary"])


def texts_list(page: Document, query: str | None = None) -> "RenderableType":
    """Return a page of texts, in their order, each in two lines. query: what was searched for."""
    from rich.console import Group

    from pocketllm.cli.views import one_line, paged

    if not page["data"]:
        none = "No texts. Add some with `pocketllm add` or `pocketllm import`."
        return none if query is None else "No text contains any of these words."
    lines = [
        one_line(said)
        for one in page["data"]
        for said in (f"{one['id']} {one['source']} ({one['words']:,} words, {one['kind']})", beginning(one))
    ]
    asked = "" if query is None else f" --query {shlex.quote(query)}"
    return paged(Group(*lines), page, f"pocketllm texts{asked}")


def beginning(text: Document) -> str:
    """Return the first words of a text: of an example with an answer the prompt's, of a chat the first message's."""
    messages = text["messages"]
    return str(messages[0].get("content", "") if messages else text["text"])[:200]


def text_details(text: Document) -> "RenderableType":
    """Return everything about one text."""
    from rich.console import Group
    from rich.text import Text

    from pocketllm.cli.views import details, picked, printable

    names = ("kind", "source", "words", "held_out", "learned", "label", "file", "created_at")
    parts = [("Prompt", text["text"]), ("Completion", text["completion"])]
    if text["messages"]:
        parts = [(str(message.get("role")), str(message.get("content"))) for message in text["messages"]]
    elif text["completion"] is None:
        parts = [("Text", text["text"])]
    words = (Text.assemble((printable(name), "bold"), "\n", printable(said)) for name, said in parts)
    return Group(details(picked(text, names), title=f"Text {text['id']}"), *words)


@program.command(
    "pocketllm export backup.jsonl",
    "pocketllm export backup.jsonl --force",
    "pocketllm export - | gzip > backup.jsonl.gz",
    "pocketllm import backup.jsonl        read it back",
    panel=PANEL,
)
def export(
    options: Common,
    file: Annotated[Path, typer.Argument(metavar="FILE", help='File to write, readable only by you; "-" is stdout.')],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Leave out the texts that are held out, to train on the others elsewhere.")
    ] = False,
) -> None:
    """Write every text with its source to a file, newest first, one JSON object per line.

    `pocketllm import FILE` reads the file back, on this or another device; texts that are already stored are not
    stored again. The file contains no adapters: `pocketllm adapters export` writes those.
    """
    if file == Path("-"):
        if options.json:
            raise UsageError("--json and the texts would both go to stdout. Give a file name.")
        with connected(options) as client:
            for line in lines(client, train=train):
                typer.echo(line, nl=False)
        return
    check_target(file, force=force)
    document: Document = {"file": str(file), "texts": 0, "bytes": 0}
    with connected(options) as client, whole_file(file) as target:
        for line in counted(lines(client, train=train)):
            target.write(line)
            document["texts"] += 1
            document["bytes"] += len(line)
    noun = "text" if document["texts"] == 1 else "texts"
    show(options, document, f"Wrote {file}: {document['texts']:,} {noun}, {document['bytes']:,} bytes.")


def lines(client: "Client", *, train: bool = False) -> Iterator[bytes]:
    """Yield each text, or each to train on, as a line of JSON. Raises CommandError when a change loses the place."""
    try:
        for text in client.pages("texts", limit=PAGE_TEXTS):
            if not (train and text["held_out"]):
                yield json.dumps(as_given(text), ensure_ascii=False).encode() + b"\n"
    except DaemonRefused as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        raise CommandError("A text was deleted during the export. Run it again.") from error


def as_given(text: Document) -> Document:
    """Return a text of the daemon's list as it was given, so that it has the same id when it is given again."""
    if text.get("messages") is not None:
        words = {"messages": text["messages"]}
    elif text.get("completion") is not None:
        words = {"prompt": text["text"], "completion": text["completion"]}
    elif text.get("label") is not None:
        words = {"text": text["text"], "label": text["label"]}
    else:
        words = {"text": text["text"]}
    return {**words, "source": text["source"]}
