"""`pocketllm add`: add texts from arguments, files or stdin."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, grouped, make_console, shared_options
from pocketllm.cli.errors import CommandError, DaemonRefused, Document

# One request is one transaction on the daemon's side, so it stays well below a megabyte.
BATCH_BYTES = 900_000
BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


EPILOG = examples(
    'pocketllm add "Wind north-west. Two mugs of tea in the shed, then home."',
    "pocketllm add --file diary.txt --split",
    "pocketllm add -f may.txt -f june.txt --source letters",
    "pocketllm add --jsonl examples.jsonl",
    "my-notes-app --export | pocketllm add - --split",
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One text as the daemon takes it, and the line of a file that it is from, if it is from one."""

    item: Document
    place: str | None = None


@shared_options
def add(
    options: Common,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help='Words to learn from, each argument a text of its own; "-" reads stdin.'),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="A UTF-8 text file; may be given several times."),
    ] = None,
    jsonl: Annotated[
        list[Path] | None,
        typer.Option(
            "--jsonl",
            help='JSON objects, one a line: {"text"}, {"prompt", "completion"}, {"messages"}, {"text", "label"}.',
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="Where the words come from; shown beside each text.")] = "cli",
    split: Annotated[
        bool, typer.Option("--split/--no-split", help="Make each paragraph (between blank lines) its own text.")
    ] = False,
) -> None:
    """Add texts for the model to learn from.

    The words stay on this device. The same text twice is stored once, so running a command again does no harm.
    """
    words, empty = collect(texts or [], files or [], split=split)
    pieces = [Piece(item={"text": text, "source": source}) for text in words]
    for path in jsonl or []:
        found = read_jsonl(path, source)
        pieces += found
        empty += [] if found else [str(path)]
    if not pieces:
        raise CommandError(nothing_to_add(empty))
    batches = list(into_batches(pieces))
    answer = post(options, batches, len(pieces))
    if options.json:
        emit(answer)
        return
    for name in empty:
        make_console(stderr=True).print(f"{name} is empty and was left out.", soft_wrap=True)
    make_console().print(summary(answer), soft_wrap=True)


def collect(texts: list[str], files: list[Path], *, split: bool) -> tuple[list[str], list[str]]:
    """Return the texts to store, and the names of the inputs without words. Raises CommandError for non-text."""
    named = [("stdin", read_stdin) if text == "-" else ("an argument", constant(text)) for text in texts]
    named += [(str(path), file_reader(path)) for path in files]
    pieces: list[str] = []
    empty: list[str] = []
    for name, read in named:
        found = paragraphs(read()) if split else [text for text in [read().strip()] if text]
        pieces += found
        if not found:
            empty.append(name)
    return pieces, empty


def constant(text: str) -> Callable[[], str]:
    """Return a reader of a text that is already here."""
    return lambda: from_argument(text)


def from_argument(text: str) -> str:
    """Return a text from the command line. Raises CommandError when its bytes were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CommandError("A text on the command line is not UTF-8. Save it as UTF-8 and use --file.") from error
    return text


def file_reader(path: Path) -> Callable[[], str]:
    """Return a reader of a text file."""
    return lambda: read_file(path)


def read_file(path: Path) -> str:
    """Return a file's text. Raises CommandError naming the file when there is none or it is not UTF-8 text."""
    if path == Path("-"):
        return read_stdin()
    if path.is_dir():
        raise CommandError(f"{path} is a folder. Give its files one by one, each with --file.")
    try:
        return decoded(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise CommandError(f"There is no file {path}.") from error


def read_jsonl(path: Path, source: str) -> list[Piece]:
    """Return a file's objects, one a line, each with `source` unless it has its own; blank lines are left out.

    Raises CommandError naming the line that holds none. What an object may hold is the daemon's to say.
    """
    from pydantic_core import from_json  # as the daemon reads it

    name = "stdin" if path == Path("-") else str(path)
    pieces = []
    # Not splitlines(): a JSON text may hold other line separators as they are.
    for number, line in enumerate(read_file(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            item = from_json(line, allow_inf_nan=False)
        except ValueError as error:
            raise CommandError(f"{place}: This is not valid JSON: {error}.") from error
        if not isinstance(item, dict):
            raise CommandError(f'{place}: This is no JSON object. Write one a line, such as {{"text": "..."}}.')
        pieces.append(Piece(item={"source": source, **item}, place=place))
    return pieces


def read_stdin() -> str:
    """Return the text on stdin. Raises CommandError when it is not UTF-8 text."""
    return decoded(sys.stdin.buffer.read(), "stdin")


def decoded(data: bytes, name: str) -> str:
    """Return bytes as text with LF line ends. Raises CommandError for binary data and other encodings."""
    if b"\0" in data:
        raise CommandError(f"{name} is not a text file: it holds zero bytes. Export it as plain UTF-8 text first.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{name} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}. Convert it first, "
            "for example with `iconv -f LATIN1 -t UTF-8`."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, which blank lines separate."""
    return [part.strip() for part in BLANK_LINES.split(text) if part.strip()]


def into_batches(pieces: Iterable[Piece], limit_bytes: int = BATCH_BYTES) -> Iterator[list[Piece]]:
    """Yield the pieces in order, as lists whose JSON stays below `limit_bytes`.

    Raises CommandError for one that is too large by itself.
    """

    def sized() -> Iterator[tuple[Piece, int]]:
        for piece in pieces:
            size = len(json.dumps(piece.item, ensure_ascii=False).encode()) + 2
            if size > limit_bytes:
                raise CommandError(too_large(piece, size, limit_bytes))
            yield piece, size

    return grouped(sized(), most_bytes=limit_bytes)


def too_large(piece: Piece, size: int, limit: int) -> str:
    """Return that a piece fits in no request, and what to do about it."""
    fits = f"{size:,} bytes long, more than the {limit:,} that fit in one request"
    if piece.place is not None:
        return f"{piece.place}: This is {fits}. Cut it up into several lines."
    return (
        f"One text is {fits} (it begins {piece.item['text'][:40]!r}). Cut it up with blank lines; --split then makes "
        "each paragraph its own text."
    )


def post(options: Common, batches: list[list[Piece]], total: int) -> Document:
    """Store the batches one after the other and return the sum of the daemon's answers."""
    answer: Document = {"ids": [], "created": 0, "duplicates": 0}
    with connected(options) as client:
        for batch in shown(batches, total, quiet=options.json):
            try:
                stored = client.add_texts([piece.item for piece in batch])
            except CommandError as caught:
                error = located(caught, batch)
                done = len(answer["ids"])
                if not done:
                    raise error from caught
                raise CommandError(
                    f"{error} {done} of {total} texts are stored; run the same command again for the rest "
                    "(what is stored already counts as a duplicate)."
                ) from caught
            answer["ids"] += stored["ids"]
            answer["created"] += stored["created"]
            answer["duplicates"] += stored["duplicates"]
    return answer


def located(error: CommandError, batch: Sequence[Piece]) -> CommandError:
    """Return the daemon's refusal of an item of a request with the file's line in place of the item's number."""
    found = re.match(r"item (\d{1,9}): ", str(error))
    number = int(found[1]) if found else 0
    if found is None or not isinstance(error, DaemonRefused) or not 1 <= number <= len(batch):
        return error
    place = batch[number - 1].place
    if place is None:
        return error
    return DaemonRefused({**error.document, "detail": f"{place}: {str(error)[found.end() :]}"})


def shown(batches: list[list[Piece]], total: int, *, quiet: bool) -> Iterator[list[Piece]]:
    """Yield the batches, with a progress bar on a terminal when there are several."""
    console = make_console(stderr=True)
    if quiet or len(batches) == 1 or not console.is_terminal:
        yield from batches
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Storing texts", total=total)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch))


def summary(answer: Document) -> str:
    """Return what was stored, in a sentence."""
    created, duplicates = answer["created"], answer["duplicates"]
    parts = [f"Added {created} {'text' if created == 1 else 'texts'}."]
    if duplicates:
        parts.append(f"{duplicates} {'was' if duplicates == 1 else 'were'} known already.")
    return " ".join(parts)


def nothing_to_add(empty: list[str]) -> str:
    """Return why there is nothing to store and how to give something."""
    if empty:
        return f"Nothing to add: {', '.join(empty)} held no words."
    return 'Nothing to add. Give words, as in `pocketllm add "what I wrote today"`, or --file PATH, or - for stdin.'
