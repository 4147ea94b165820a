"""Commands that give texts: `add` for words, `import` for files; and how texts go to the daemon."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pocketllm.cli.program import Common, connected, given, make_console, program, progress, show
from pocketllm.daemon.paths import is_there
from pocketllm.errors import CommandError, DaemonRefused, Document, Interrupted, UsageError
from pocketllm.readers.base import Example, Kind, ReadOptions, Unreadable, decoded, name_key
from pocketllm.readers.notes import paragraphs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pocketllm.client import Client
    from pocketllm.readers.gathering import Tally

PANEL = "Your texts"
Item = TypeVar("Item")
#: Called with the reason and the place of a text that is left out.
Skip = Callable[[str, str], None]

#: A request is one transaction of the daemon, so it stays below a megabyte; a longer text has one to itself.
BATCH_BYTES, BATCH_TEXTS = 900_000, 1000
#: The daemon's `max_body_bytes`, less what stands around a text.
REQUEST_BYTES = 7_900_000
TOO_LONG = "too long for one request"
#: More refused texts than this, such as ones with an unknown label, end an import: the cause must be a larger one.
MAX_REFUSED = 50
MAX_NAMES = 12  # of the writers where nobody has named the owner
MAX_SOURCE = 200  # characters
MAX_PLACE = 50  # characters of a place, on a terminal's line

Me = Annotated[
    list[str] | None,
    typer.Option(
        "--me",
        metavar="NAME",
        help="Your name in chats or your address in mail; can be repeated. Only what you wrote is learned: chat "
        "messages as answers to the messages before them, mails as texts.",
    ),
]
AsWritten = Annotated[
    bool, typer.Option("--as-written", help="Keep the markup of Markdown notes instead of only their prose.")
]


@program.command(
    'pocketllm add "Wind north-west. Two mugs of tea in the shed, then home."',
    'pocketllm add --label work "Invoice 8123 is due"',
    "my-notes-app --export | pocketllm add - --split",
    panel=PANEL,
)
def add(
    options: Common,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help='Text to add; each argument is one text. "-" reads stdin.'),
    ] = None,
    source: Annotated[str, typer.Option(help="Where the texts come from; shown with each text.")] = "cli",
    label: Annotated[
        str | None, typer.Option(help="Label of the texts, which are then examples for `classify`.")
    ] = None,
    split: Annotated[
        bool, typer.Option("--split", help="Make each paragraph a text; blank lines separate paragraphs.")
    ] = False,
) -> None:
    """Add texts for the model to learn from. `pocketllm import` adds files.

    The texts stay on this device. A text that is already stored is not stored again, so you can repeat a command.
    """
    more = given(source=source, label=label)
    texts = []
    for number, word in enumerate(words or [], 1):
        place, text = ("stdin", read_stdin()) if word == "-" else (f"argument {number}", from_argument(word))
        for count, part in enumerate(paragraphs(text) if split else filter(None, [text.strip()]), 1):
            texts.append(Example(item={"text": part, **more}, place=f"{place} paragraph {count}" if split else place))
    if not texts:
        raise CommandError('Nothing to add. Give a text, as in `pocketllm add "what I wrote today"`, or - for stdin.')

    def refuse(reason: str, place: str) -> None:
        advice = " Split it into several texts (`--split` makes one per paragraph)." * (reason == TOO_LONG)
        raise CommandError(f"{place}: {reason.removesuffix('.')}.{advice}")

    sent = send(options, texts, refuse)
    show(options, {name: sent[name] for name in ("ids", "created", "duplicates")}, added_text(sent))


def from_argument(text: str) -> str:
    """Return a text from the command line. Raises CommandError when its bytes were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CommandError("A text on the command line is not UTF-8. Save it as UTF-8 and import the file.") from error
    return text


def read_stdin() -> str:
    """Return the text on stdin, with LF line ends. Raises CommandError when it is not UTF-8 text."""
    try:
        return decoded(sys.stdin.buffer.read())
    except Unreadable as error:
        raise CommandError(f"stdin: {error}.") from error


@program.command(
    "pocketllm import ~/notes --dry-run",
    "pocketllm import ~/notes",
    "pocketllm import Sent.mbox --me anna@example.org",
    'pocketllm import "WhatsApp Chat with Bert.txt" --me Anna',
    "pocketllm import conversations.json",
    "pocketllm import backup.jsonl",
    name="import",
    panel=PANEL,
)
def import_texts(
    options: Common,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files, or folders to read with their subfolders.")
    ],
    me: Me = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be imported without sending it. Needs no daemon.")
    ] = False,
    kind: Annotated[
        Kind | None, typer.Option("--format", help="Format of the files. Default: detected for each file.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Source of the texts. Default: the source in the file's lines, else the file's kind and name."
        ),
    ] = None,
    as_written: AsWritten = False,
) -> None:
    """Import your writing: notes, mail, chat exports, or a file from `pocketllm export`.

    Reads Markdown, text and HTML notes; mbox and .eml mail; exports from WhatsApp, Telegram, ChatGPT and Claude; and
    PocketLLM's own JSON Lines. With --format csv, reads a table with the columns text, label, prompt or completion.

    Hidden files, files without text and unknown formats are skipped and counted. The texts stay on this device. A text
    that is already stored is not stored again, so you can repeat an import or resume an interrupted one.
    """
    from pocketllm.daemon.settings import load_settings
    from pocketllm.readers.gathering import Tally, gather

    for path in paths:
        if not is_there(path) and not path.is_symlink():
            raise CommandError(f"There is no file or folder {path}.")
    if source is not None and not 1 <= len(source) <= MAX_SOURCE:
        raise UsageError(f"--source has {len(source)} characters; it must have 1 to {MAX_SOURCE}.")
    names, max_bytes = frozenset(map(name_key, me or [])), load_settings({}).max_text_bytes
    read_options = ReadOptions(me=names, format=kind, max_bytes=max_bytes, as_written=as_written)
    tally = Tally()
    texts = gather(paths, read_options, tally, source=source)
    sent: Document = {"dry_run": True}
    if dry_run:
        for _ in counted(texts, lambda text: text.place):
            pass
    else:
        stored = send(options, texts, tally.skip)
        sent = {name: stored[name] for name in ("created", "duplicates", "refused")}
    document = {**tally.as_document(), **sent}
    show(options, document, import_view(document), soft_wrap=True)
    if tally.writers:
        raise CommandError(who_are_you(tally))
    if not document["texts"]:
        raise CommandError("Nothing to import: no text of yours was found.")


def who_are_you(tally: "Tally") -> str:
    """Return who wrote in the chats and mailboxes whose owner nobody has named, and how to name them."""
    named = [f"{name!r} ({count:,})" for name, count in tally.writers.most_common(MAX_NAMES)]
    more = len(tally.writers) - len(named)
    who = ", ".join(named) + (f" and {more:,} more" if more > 0 else "")
    files = tally.ownerless[0] + (f" and {len(tally.ownerless) - 1:,} more" if len(tally.ownerless) > 1 else "")
    return (
        f"Which of these are you? Writers in {files}, with their number of messages: {who}. Run it again with "
        "--me NAME to learn what NAME wrote; --me can be repeated."
    )


def send(options: Common, texts: Iterable[Example], skip: Skip) -> Document:
    """Store the texts and return the sum of the daemon's answers: ids, created, duplicates and refused.

    A text that no request can hold, or that the daemon refuses, is left out and passed to `skip`. Raises CommandError,
    or Interrupted on Ctrl-C, which say how many texts are stored.
    """
    sent: Document = {"ids": [], "created": 0, "duplicates": 0, "refused": 0}
    try:
        with connected(options) as client:
            client.get("health")  # better now than after hours of reading
            for batch in batches(counted(texts, lambda text: text.place), skip):
                store(client, batch, sent, skip)
    except (KeyboardInterrupt, CommandError) as error:
        so_far = (
            f"{len(sent['ids']):,} texts are stored; run the same command again for the rest (stored texts count as "
            "duplicates)."
        )
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Stopped by Ctrl-C. {so_far}") from error
        if not sent["ids"]:
            raise
        raise CommandError(f"{error} {so_far}") from error
    return sent


def batches(texts: Iterable[Example], skip: Skip) -> Iterator[list[Example]]:
    """Yield the texts in order, in lists that fit in one request each."""
    batch, total = list[Example](), 0
    for text in texts:
        size = len(json.dumps(text.item, ensure_ascii=False).encode()) + 2
        if size > REQUEST_BYTES:
            skip(TOO_LONG, text.place)
            continue
        if batch and (total + size > BATCH_BYTES or len(batch) == BATCH_TEXTS):
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += size
    if batch:
        yield batch


def store(client: "Client", batch: list[Example], sent: Document, skip: Skip) -> None:
    """Store a batch and add the answer to `sent`. Without a text that the daemon refuses, the batch is sent again."""
    while batch:
        try:
            answer = client.post("texts", body=[text.item for text in batch])
        except DaemonRefused as error:
            found = re.match(r"item (\d{1,9}): ", str(error))
            number, reason = (int(found[1]), str(error)[found.end() :]) if found else (0, "")
            if not 1 <= number <= len(batch):
                raise
            place = batch[number - 1].place
            sent["refused"] += 1
            if sent["refused"] > MAX_REFUSED:
                raise CommandError(f"{place}: {reason} Stopped after more than {MAX_REFUSED} refused texts.") from error
            skip(f"refused by the daemon: {reason}", place)
            batch = batch[: number - 1] + batch[number:]
        else:
            for name in ("ids", "created", "duplicates"):
                sent[name] += answer[name]
            return


def counted(items: Iterable[Item], place: Callable[[Item], str] = lambda item: "") -> Iterator[Item]:
    """Yield the items, which are texts; a terminal shows how many there were, and where the last one is from."""
    with progress(make_console(stderr=True), plain=False) as report:
        for number, item in enumerate(items, 1):
            report("", f"{number:,} texts  {place(item)[-MAX_PLACE:]}", number, None)
            yield item


def import_view(found: Document) -> "RenderableType":
    """Return how much of which kind was read, what was skipped and why, and what became of the texts.

    found: a tally as a document, and the daemon's answers or `dry_run`.
    """
    from rich.console import Group
    from rich.text import Text

    from pocketllm.cli.views import table

    total = {name: found[name] for name in ("files", "texts", "words")}
    rows = [{"kind": kind, **count} for kind, count in sorted(found["kinds"].items())]
    rows += [{"kind": "total", **total}] if len(rows) > 1 else []
    parts = [table(rows, ("kind", "files", "texts", "words"))] if rows else []
    if found["skipped"]:
        skipped = sorted(found["skipped"], key=lambda one: -one["count"])
        parts += [Text("Skipped", style="bold"), table(skipped, ("count", "reason", "places"))]
    dry_run = f"Dry run: found {found['texts']:,} texts with {found['words']:,} words, sent none."
    return Group(*parts, Text(dry_run if found.get("dry_run") else added_text(found)))


def added_text(sent: Document) -> str:
    """Return how many texts were added and how many were known, in a sentence or two."""
    created, duplicates = sent["created"], sent["duplicates"]
    known = f" {duplicates:,} {'was' if duplicates == 1 else 'were'} already stored." if duplicates else ""
    return f"Added {created:,} {'text' if created == 1 else 'texts'}.{known}"
