"""`pocketllm import`: imports notes, mail and chat exports; recognises the kind of each file."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, grouped, make_console, shared_options
from pocketllm.cli.errors import CommandError, DaemonRefused, Document, Interrupted, UsageError
from pocketllm.cli.home import configured_text_bytes
from pocketllm.readers.base import MAX_TEXT_BYTES, Kind, ReadOptions, name_key

if TYPE_CHECKING:
    from rich.console import Console

    from pocketllm.client import Client
    from pocketllm.readers.gathering import Tally, Text
    from pocketllm.readers.walk import Entry

#: A request is one transaction on the daemon's side, so it stays small; a longer text has one to itself.
BATCH_BYTES = 900_000
BATCH_TEXTS = 1000
#: The daemon's `max_body_bytes`, less what stands around a text.
REQUEST_BYTES = 7_900_000
#: So many texts may be refused, such as labels that are not in the settings, before something larger must be wrong.
MAX_REFUSED = 50
WRITERS_NAMED = 12
MAX_SOURCE = 200  # characters
LONGEST_NAME = 50  # characters of a file's name that a terminal's line has room for

EPILOG = examples(
    "pocketllm import ~/notes --dry-run",
    "pocketllm import ~/notes",
    "pocketllm import Sent.mbox --me anna@example.org",
    'pocketllm import "WhatsApp Chat with Bert.txt" --me Anna',
    "pocketllm import conversations.json",
    "pocketllm import backup.jsonl",
)


@shared_options
def import_texts(
    options: Common,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Files, or folders that are read with all folders in them."),
    ],
    me: Annotated[
        list[str] | None,
        typer.Option(
            "--me",
            metavar="NAME",
            help="Your name in a chat, or your address in mail; may be given several times. Only what you wrote is "
            "learned: messages as answers to what stands before them, mails as texts.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be imported, and send nothing. Needs no daemon.")
    ] = False,
    kind: Annotated[
        Kind | None, typer.Option("--format", help="What the files are; it is seen by looking unless you say it.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Where the words come from; else the kind and name of each file, or what its lines say."),
    ] = None,
) -> None:
    """Import what you have written: folders of notes, mailboxes, chat exports, or what `export` wrote.

    Read are Markdown, text and HTML notes; mbox and .eml; exports of WhatsApp, Telegram, ChatGPT, Claude; lists of
    messages in JSON, JSON lines or CSV (Slack, Discord, Messenger); and PocketLLM's own JSON lines.

    What is hidden, no text, or of no known kind is left out and counted. The words stay on this device. The same text
    twice is stored once, so running a command again does no harm, and goes on where one was stopped.
    """
    from pocketllm.readers.gathering import Tally

    check(paths, source)
    names = frozenset(map(name_key, me or []))
    read_options = ReadOptions(me=names, format=kind, max_bytes=configured_text_bytes() or MAX_TEXT_BYTES)
    tally = Tally()
    with progress(quiet=options.json) as watcher:
        if dry_run:
            sent: Document = {"dry_run": True}
            for _ in found(paths, read_options, tally, source, watcher):
                pass
        else:
            sent = send(options, found(paths, read_options, tally, source, watcher), tally)
    show_summary(options, tally, sent)


def check(paths: list[Path], source: str | None) -> None:
    """Refuse what cannot be imported before anything is read. Raises CommandError."""
    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise CommandError(f"There is no file or folder {path}.")
    if source is not None and not 1 <= len(source) <= MAX_SOURCE:
        raise UsageError(f"--source has {len(source)} characters; give it 1 to {MAX_SOURCE}.")


class Watcher:
    """Is told how far an import is. This one shows nothing."""

    def file(self, entry: "Entry") -> None:
        """A file is about to be read."""

    def text(self) -> None:
        """A text was read."""


def found(
    paths: list[Path], read_options: ReadOptions, tally: "Tally", source: str | None, watcher: Watcher
) -> "Iterator[Text]":
    """Yield the texts below some paths, told to the watcher one by one."""
    from pocketllm.readers.gathering import gather

    for text in gather(paths, read_options, tally, source=source, on_file=watcher.file):
        watcher.text()
        yield text


def send(options: Common, texts: "Iterator[Text]", tally: "Tally") -> Document:
    """Store the texts, a batch at a time, and return the sum of the daemon's answers.

    Raises CommandError which says how much is stored when it cannot go on.
    """
    sent = {"created": 0, "duplicates": 0, "refused": 0}
    try:
        with connected(options) as client:
            client.health()  # better now than after hours of reading
            for batch in batches(texts, tally):
                store(client, batch, sent, tally)
    except KeyboardInterrupt as error:
        raise Interrupted(f"Stopped by Ctrl-C. {so_far(sent)}") from error
    except CommandError as error:
        if not sent["created"] + sent["duplicates"]:
            raise
        raise CommandError(f"{error} {so_far(sent)}") from error
    return sent


def so_far(sent: Document) -> str:
    """Return how much is stored, and how to go on."""
    done = sent["created"] + sent["duplicates"]
    return (
        f"{done:,} texts are stored; run the same command again for the rest (what is stored already counts as a "
        "duplicate)."
    )


def batches(texts: "Iterator[Text]", tally: "Tally") -> "Iterator[list[Text]]":
    """Yield the texts in order, in lists that fit in one request each; what fits in none is left out."""

    def sized() -> "Iterator[tuple[Text, int]]":
        for text in texts:
            size = len(json.dumps(text.item).encode()) + 2
            if size > REQUEST_BYTES:
                tally.skip("longer than any request may be", text.place)
            else:
                yield text, size

    return grouped(sized(), most_bytes=BATCH_BYTES, most=BATCH_TEXTS)


def store(client: "Client", batch: "list[Text]", sent: Document, tally: "Tally") -> None:
    """Store a batch. A text that the daemon refuses is left out, and the rest of the batch tried again."""
    while batch:
        try:
            answer = client.add_texts([text.item for text in batch])
        except DaemonRefused as error:
            number, reason = refused_item(error)
            if not 1 <= number <= len(batch):
                raise
            place = batch[number - 1].place
            sent["refused"] += 1
            if sent["refused"] > MAX_REFUSED:
                raise CommandError(f"{place}: {reason} More than {MAX_REFUSED} texts were refused.") from error
            tally.skip(f"refused by the daemon: {reason}", place)
            batch = batch[: number - 1] + batch[number:]
        else:
            sent["created"] += answer["created"]
            sent["duplicates"] += answer["duplicates"]
            return


def refused_item(error: DaemonRefused) -> tuple[int, str]:
    """Return which item of a request was refused, and why; 0 when it is not one of them."""
    found = re.match(r"item (\d{1,9}): ", str(error))
    return (int(found[1]), str(error)[found.end() :]) if found else (0, "")


@contextmanager
def progress(*, quiet: bool) -> Iterator[Watcher]:
    """A watcher that shows, on a terminal, which file is read and how many texts there are so far."""
    console = make_console(stderr=True)
    if quiet or not console.is_terminal:
        yield Watcher()
        return
    with on_terminal(console) as watcher:
        yield watcher


@contextmanager
def on_terminal(console: "Console") -> Iterator[Watcher]:
    """A line that moves."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from pocketllm.cli.views import printable

    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} texts", markup=False),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        class Line(Watcher):
            def file(self, entry: "Entry") -> None:
                bar.update(task, description=printable(entry.name)[-LONGEST_NAME:])

            def text(self) -> None:
                bar.advance(task)

        yield Line()


def show_summary(options: Common, tally: "Tally", sent: Document) -> None:
    """Print what was found and stored. Raises CommandError when that is nothing, or when a chat has no owner."""
    if options.json:
        emit({**tally.as_document(), **sent})
    else:
        from pocketllm.cli.texts.import_view import import_view

        make_console().print(import_view(tally, sent), soft_wrap=True)
    if tally.writers:
        raise CommandError(who_are_you(tally))
    if not tally.texts:
        raise CommandError("Nothing to import: there is no text of yours in what was named.")


def who_are_you(tally: "Tally") -> str:
    """Return who takes part in the chats of which nobody is known to be the owner, and how to say it."""
    named = [f"{name!r} ({count:,})" for name, count in tally.writers.most_common(WRITERS_NAMED)]
    more = len(tally.writers) - len(named)
    who = ", ".join(named) + (f" and {more:,} more" if more > 0 else "")
    files = tally.ownerless[0] + (f" and {len(tally.ownerless) - 1:,} more" if len(tally.ownerless) > 1 else "")
    return (
        f"Who of these are you? In {files} these wrote (with how many messages): {who}. Run it again with "
        "--me NAME, to learn what NAME answers to the others."
    )
