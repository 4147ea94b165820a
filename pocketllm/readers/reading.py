"""Reads a file with the reader for its kind.

for entry in walk([Path("notes")]):
    kind, found = read(entry, ReadOptions())
"""

from collections.abc import Iterator
from pathlib import Path

from pocketllm.readers.base import Found, Kind, ReadOptions, Skipped, Unreadable
from pocketllm.readers.chats import examples
from pocketllm.readers.documents import first_objects, read_document, read_lines
from pocketllm.readers.mail import read_eml, read_mbox
from pocketllm.readers.notes import read_notes
from pocketllm.readers.own import read_own
from pocketllm.readers.recognise import recognise
from pocketllm.readers.tables import read_table
from pocketllm.readers.walk import Entry
from pocketllm.readers.whatsapp import read_whatsapp

DOCUMENTS = {Kind.CHATGPT, Kind.CLAUDE, Kind.TELEGRAM, Kind.CHAT}
SOURCE_CHARACTERS = 200


def read(entry: Entry, read_options: ReadOptions) -> tuple[Kind | None, Iterator[Found]]:
    """Return a file's kind and what is in it; without a kind, the reason why it is not read.

    The iterator raises no error of the file's: where the file is broken, it yields a Skipped and ends.
    """
    if entry.reason:
        return None, iter([Skipped(reason=entry.reason)])
    try:
        kind, found = opened(entry.path, read_options, named=entry.named)
    except Unreadable as error:
        return None, iter([Skipped(reason=str(error))])
    return kind, without_errors(found)


def opened(path: Path, read_options: ReadOptions, *, named: bool) -> tuple[Kind, Iterator[Found]]:
    """Return a file's kind, the requested one if there is one, and its examples. Raises Unreadable."""
    kind = read_options.format or recognise(path, named=named)
    if kind is Kind.CHAT and first_objects(path):
        return kind, read_lines(path, read_options)
    if kind in DOCUMENTS:
        return read_document(path, read_options)
    if kind is Kind.WHATSAPP:
        return kind, examples(read_whatsapp(path), read_options)
    if kind is Kind.JSONL:
        return kind, read_own(path)
    readers = {Kind.NOTES: read_notes, Kind.MBOX: read_mbox, Kind.EML: read_eml, Kind.CSV: read_table}
    return kind, readers[kind](path, read_options)


def without_errors(found: Iterator[Found]) -> Iterator[Found]:
    """Yield what a reader yields, and a Skipped when it fails."""
    try:
        yield from found
    except Unreadable as error:
        yield Skipped(reason=str(error))
    except RecursionError:
        yield Skipped(reason="nested too deeply")
    except OSError as error:
        yield Skipped(reason=f"cannot be read to the end: {error.strerror or error}")


def source_name(kind: Kind, name: str) -> str:
    """Return an example's source: the kind and the end of the file's name."""
    prefix = f"{kind.value}: "
    return prefix + name[-(SOURCE_CHARACTERS - len(prefix)) :]
