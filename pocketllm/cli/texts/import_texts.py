"""`pocketllm import`: imports notes, mail and chat exports; recognises the kind of each file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, examples, shared_options, show
from pocketllm.errors import CommandError, Document, UsageError
from pocketllm.home import configured_text_bytes
from pocketllm.readers.base import MAX_TEXT_BYTES, Kind, ReadOptions, name_key

if TYPE_CHECKING:
    from pocketllm.readers.gathering import Tally

MAX_NAMES = 12  # of the writers where nobody has named the owner
MAX_SOURCE = 200  # characters

EPILOG = examples(
    "pocketllm import ~/notes --dry-run",
    "pocketllm import ~/notes",
    "pocketllm import Sent.mbox --me anna@example.org",
    'pocketllm import "WhatsApp Chat with Bert.txt" --me Anna',
    "pocketllm import conversations.json",
    "pocketllm import backup.jsonl",
)

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


@shared_options
def import_texts(
    options: Common,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Files, or folders to read with their subfolders."),
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

    Reads Markdown, text and HTML notes; mbox and .eml mail; exports from WhatsApp, Telegram, ChatGPT and Claude;
    messages in JSON, JSON Lines or CSV (Slack, Discord, Messenger); and PocketLLM's own JSON Lines.

    Hidden files, files without text and unknown formats are skipped and counted. The texts stay on this device. A text
    that is already stored is not stored again, so you can repeat an import or resume an interrupted one.
    """
    from pocketllm.cli.texts.sending import counted, send
    from pocketllm.readers.gathering import Tally, gather

    check(paths, source)
    names = frozenset(map(name_key, me or []))
    read_options = ReadOptions(
        me=names, format=kind, max_bytes=configured_text_bytes() or MAX_TEXT_BYTES, as_written=as_written
    )
    tally = Tally()
    found = gather(paths, read_options, tally, source=source)
    texts = counted(found, quiet=options.json, place=lambda text: text.place)
    if dry_run:
        for _ in texts:
            pass
        show_summary(options, tally, {"dry_run": True})
    else:
        sent = send(options, texts, tally.skip)
        show_summary(options, tally, {name: sent[name] for name in ("created", "duplicates", "refused")})


def check(paths: list[Path], source: str | None) -> None:
    """Refuse what cannot be imported before anything is read. Raises CommandError."""
    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise CommandError(f"There is no file or folder {path}.")
    if source is not None and not 1 <= len(source) <= MAX_SOURCE:
        raise UsageError(f"--source has {len(source)} characters; it must have 1 to {MAX_SOURCE}.")


def show_summary(options: Common, tally: "Tally", sent: Document) -> None:
    """Print what was found and stored. Raises CommandError when that is nothing, or when the owner is to be named."""
    from pocketllm.cli.text_views import import_view

    document = {**tally.as_document(), **sent}
    show(options, document, import_view(document), soft_wrap=True)
    if tally.writers:
        raise CommandError(who_are_you(tally))
    if not tally.texts:
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
