"""CSV: a table of messages, or of examples, whose first row names its columns."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pocketllm.readers.base import (
    MAX_LINE_BYTES,
    Document,
    Example,
    Found,
    ReadOptions,
    Skipped,
    Unreadable,
    cleaned,
    read_text,
)
from pocketllm.readers.chats import examples
from pocketllm.readers.documents import KINDS
from pocketllm.readers.messages import SENDERS, TEXTS, conversation

DELIMITERS = ",;\t|"
NO_HEADINGS = (
    "a table without known column names in its first row; add them: sender and text, text and label, "
    "or prompt and completion"
)


def _headings(line: str) -> tuple[str, list[str]]:
    """Return a table's delimiter and its column names in lower case; no names when none is known."""
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        names = [cell.strip().lower() for cell in cells]
        if _columns_of_examples(names) or (set(names) & set(SENDERS) and set(names) & set(TEXTS)):
            return delimiter, names
    return ",", []


def _columns_of_examples(names: list[str]) -> list[str]:
    """Return the columns that together make an example; none when they are those of messages."""
    if set(names) & set(SENDERS):
        return []
    kinds = [sorted(kind) for kind in KINDS if kind <= set(names) and kind != {"messages"}]
    return max(kinds, key=len, default=[])


def read_table(path: Path, read_options: ReadOptions) -> Iterator[Found]:
    """Yield the examples of a table. Raises Unreadable."""
    text = read_text(path)
    delimiter, names = _headings(text.partition("\n")[0][:2000])
    if not names:
        raise Unreadable(NO_HEADINGS)
    columns = _columns_of_examples(names)
    if columns:
        for number, row in rows(text, delimiter, names):
            item = {name: cleaned(row.get(name, "")) for name in columns}
            whole = all(item.values())
            place = f"row {number}"
            yield Example(item=item, place=place) if whole else Skipped(reason="rows with an empty cell", place=place)
        return
    yield from examples([conversation([row for _, row in rows(text, delimiter, names)])], read_options)


def rows(text: str, delimiter: str, names: list[str]) -> Iterator[tuple[int, Document]]:
    """Yield the rows below the headings with their numbers. Raises Unreadable at a row that is not CSV."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for number, cells in enumerate(reader, 1):
            if number > 1 and cells:
                yield number, dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise Unreadable(f"invalid CSV from row {reader.line_num} on: {error}") from error
