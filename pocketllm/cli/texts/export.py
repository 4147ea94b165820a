"""`pocketllm export`: every text that the daemon has, as a file that `pocketllm import` reads back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.cli.errors import CommandError, DaemonRefused, Document, UsageError
from pocketllm.cli.files import check_target, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocketllm.client import Client

#: A page is held in memory at both ends, and a text may be a megabyte.
PAGE_TEXTS = 50
NOT_FOUND = 404

EPILOG = examples(
    "pocketllm export backup.jsonl",
    "pocketllm export backup.jsonl --force",
    "pocketllm export - | gzip > backup.jsonl.gz",
    "pocketllm import backup.jsonl        reads it back",
)


@shared_options
def export(
    options: Common,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help='The file to write, which only you may read; "-" is stdout.')
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write every text to a file, newest first, a JSON object a line: what you gave, with its source.

    `pocketllm import FILE` reads it back, here or on another device; what is there already is not stored twice. What
    was learned is not in it: see `pocketllm adapters export`.
    """
    if file == Path("-"):
        if options.json:
            raise UsageError("--json writes a document to stdout, where the texts would go. Give the name of a file.")
        with connected(options) as client:
            for line in lines(client):
                typer.echo(line, nl=False)
        return
    check_target(file, force=force)
    document: Document = {"file": str(file), "texts": 0, "bytes": 0}
    with connected(options) as client, progress(quiet=options.json) as advance, whole_file(file) as target:
        for line in lines(client):
            target.write(line)
            document["texts"] += 1
            document["bytes"] += len(line)
            advance()
    if options.json:
        emit(document)
        return
    noun = "text" if document["texts"] == 1 else "texts"
    sentence = f"Wrote {file}: {document['texts']:,} {noun}, {document['bytes']:,} bytes."
    make_console().print(sentence, soft_wrap=True)


def lines(client: "Client") -> Iterator[bytes]:
    """Yield each text as a line of JSON. Raises CommandError when the texts change in a way that loses the place."""
    after: str | None = None
    while True:
        try:
            page = client.texts(limit=PAGE_TEXTS, after=after)
        except DaemonRefused as error:
            if after is None or error.status != NOT_FOUND:
                raise
            raise CommandError("A text was deleted in the middle of the export. Run it again.") from error
        for text in page["data"]:
            yield json.dumps(as_given(text), ensure_ascii=False).encode() + b"\n"
        after = page.get("next")
        if not page.get("has_more") or after is None:
            return


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


@contextmanager
def progress(*, quiet: bool) -> "Iterator[Callable[[], None]]":
    """What to call for each text; on a terminal it is seen."""
    console = make_console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn

    with Progress(SpinnerColumn(), TextColumn("{task.completed:,.0f} texts"), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda: bar.advance(task)
