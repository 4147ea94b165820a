"""`pocketllm add`: adds texts from arguments, files or stdin."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, examples, make_console, shared_options, show
from pocketllm.cli.texts.sending import counted, send
from pocketllm.errors import CommandError
from pocketllm.readers.base import Text, Unreadable, decoded
from pocketllm.readers.notes import paragraphs

EPILOG = examples(
    'pocketllm add "Wind north-west. Two mugs of tea in the shed, then home."',
    "pocketllm add --file diary.txt --split",
    "pocketllm add -f may.txt -f june.txt --source letters",
    'pocketllm add --label work "Invoice 8123 is due"',
    "pocketllm add --jsonl examples.jsonl",
    "my-notes-app --export | pocketllm add - --split",
)


@shared_options
def add(
    options: Common,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help='Text to add; each argument is one text. "-" reads stdin.'),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="UTF-8 text file; can be repeated."),
    ] = None,
    jsonl: Annotated[
        list[Path] | None,
        typer.Option(
            "--jsonl",
            help='JSON objects, one per line: {"text"}, {"prompt", "completion"}, {"messages"}, {"text", "label"}.',
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="Where the texts come from; shown with each text.")] = "cli",
    label: Annotated[
        str | None, typer.Option(help="Label of the texts, which are then examples for `classify`.")
    ] = None,
    split: Annotated[
        bool, typer.Option("--split/--no-split", help="Make each paragraph a text; blank lines separate paragraphs.")
    ] = False,
) -> None:
    """Add texts for the model to learn from.

    The texts stay on this device. A text that is already stored is not stored again, so you can repeat a command.
    """
    named = [
        ("stdin", read_stdin()) if word == "-" else (f"argument {number}", from_argument(word))
        for number, word in enumerate(words or [], 1)
    ]
    named += [(str(path), read_file(path)) for path in files or []]
    texts_of = [(name, plain_texts(name, text, source, split=split)) for name, text in named]
    texts_of += [(str(path), read_jsonl(path, source)) for path in jsonl or []]
    empty = [name for name, texts in texts_of if not texts]
    texts = [text for _, found in texts_of for text in found]
    if label is not None:
        texts = [replace(text, item={"label": label, **text.item}) for text in texts]
    if not texts:
        raise CommandError(nothing_to_add(empty))
    from pocketllm.cli.text_views import added_text

    sent = send(options, counted(texts, quiet=options.json, place=lambda text: text.place))
    if not options.json:
        for name in empty:
            make_console(stderr=True).print(f"{name} is empty and was skipped.", soft_wrap=True)
    show(options, {name: sent[name] for name in ("ids", "created", "duplicates")}, added_text(sent))


def from_argument(text: str) -> str:
    """Return a text from the command line. Raises CommandError when its bytes were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CommandError("A text on the command line is not UTF-8. Save it as UTF-8 and use --file.") from error
    return text


def plain_texts(name: str, text: str, source: str, *, split: bool) -> list[Text]:
    """Return what is in one argument or file: one text, or one for each paragraph; none where it holds no words."""
    if not split:
        return [Text(item={"text": text.strip(), "source": source}, place=name)] if text.strip() else []
    parts = enumerate(paragraphs(text), 1)
    return [Text(item={"text": part, "source": source}, place=f"{name} paragraph {number}") for number, part in parts]


def read_jsonl(path: Path, source: str) -> list[Text]:
    """Return a file's objects, one a line, each with `source` unless it has its own; blank lines are left out.

    Raises CommandError naming the line that is no object. The daemon checks what the objects hold.
    """
    from pydantic_core import from_json  # as the daemon reads it

    name = "stdin" if path == Path("-") else str(path)
    texts = []
    # Not splitlines(): a JSON text may hold other line separators as they are.
    for number, line in enumerate(read_file(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            item = from_json(line, allow_inf_nan=False)
        except ValueError as error:
            raise CommandError(f"{place}: invalid JSON: {error}.") from error
        if not isinstance(item, dict):
            raise CommandError(f'{place}: not a JSON object. Write one per line, such as {{"text": "..."}}.')
        texts.append(Text(item={"source": source, **item}, place=place))
    return texts


def read_file(path: Path) -> str:
    """Return a file's text. Raises CommandError naming the file when there is none or it is not UTF-8 text."""
    if path == Path("-"):
        return read_stdin()
    if path.is_dir():
        raise CommandError(f"{path} is a folder. Import it with `pocketllm import`.")
    try:
        return text_of(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise CommandError(f"There is no file {path}.") from error


def read_stdin() -> str:
    """Return the text on stdin. Raises CommandError when it is not UTF-8 text."""
    return text_of(sys.stdin.buffer.read(), "stdin")


def text_of(data: bytes, name: str) -> str:
    """Return bytes as text with LF line ends. Raises CommandError for binary data and other encodings."""
    try:
        return decoded(data)
    except Unreadable as error:
        raise CommandError(f"{name}: {error}.") from error


def nothing_to_add(empty: list[str]) -> str:
    """Return why there is nothing to store and how to give something."""
    if empty:
        return f"Nothing to add: {', '.join(empty)} contained no words."
    return 'Nothing to add. Give a text, as in `pocketllm add "what I wrote today"`, --file PATH, or - for stdin.'
