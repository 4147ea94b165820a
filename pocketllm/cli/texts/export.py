"""`pocketllm export`: every text that the daemon has, as a file that `pocketllm import` reads back."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, check_target, connected, examples, shared_options, show, whole_file
from pocketllm.cli.importing import counted
from pocketllm.errors import CommandError, DaemonRefused, Document, UsageError

if TYPE_CHECKING:
    from pocketllm.client import Client

#: A page is held in memory at both ends, and a text may be a megabyte.
PAGE_TEXTS = 50

EPILOG = examples(
    "pocketllm export backup.jsonl",
    "pocketllm export backup.jsonl --force",
    "pocketllm export - | gzip > backup.jsonl.gz",
    "pocketllm import backup.jsonl        read it back",
)


@shared_options
def export(
    options: Common,
    file: Annotated[Path, typer.Argument(metavar="FILE", help='File to write, readable only by you; "-" is stdout.')],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write every text with its source to a file, newest first, one JSON object per line.

    `pocketllm import FILE` reads the file back, on this or another device; texts that are already stored are not
    stored again. The file contains no adapters: `pocketllm adapters export` writes those.
    """
    if file == Path("-"):
        if options.json:
            raise UsageError("--json and the texts would both go to stdout. Give a file name.")
        with connected(options) as client:
            for line in lines(client):
                typer.echo(line, nl=False)
        return
    check_target(file, force=force)
    document: Document = {"file": str(file), "texts": 0, "bytes": 0}
    with connected(options) as client, whole_file(file) as target:
        for line in counted(lines(client)):
            target.write(line)
            document["texts"] += 1
            document["bytes"] += len(line)
    noun = "text" if document["texts"] == 1 else "texts"
    show(options, document, f"Wrote {file}: {document['texts']:,} {noun}, {document['bytes']:,} bytes.")


def lines(client: "Client") -> Iterator[bytes]:
    """Yield each text as a line of JSON. Raises CommandError when the texts change in a way that loses the place."""
    try:
        for text in client.pages("texts", limit=PAGE_TEXTS):
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
