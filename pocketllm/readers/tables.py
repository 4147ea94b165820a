"""CSV, when it is asked for: a table of examples, whose first row names its columns."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pocketllm.readers.base import MAX_LINE_BYTES, Example, Found, ReadOptions, Skipped, Unreadable, cleaned, read_text
from pocketllm.readers.documents import KINDS

DELIMITERS = ";\t,"
NO_HEADINGS = "a table whose first row has none of these names: text, text and label, prompt and completion; add them"


def read_table(path: Path, _: ReadOptions) -> Iterator[Found]:
    """Yield the examples of a table. Raises Unreadable."""
    text = read_text(path)
    heading = text.partition("\n")[0]
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = next((one for one in DELIMITERS if one in heading), ",")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        columns = max((sorted(kind) for kind in KINDS if kind <= {*names} - {"messages"}), key=len, default=None)
        if columns is None:
            raise Unreadable(NO_HEADINGS)
        for number, cells in enumerate(rows, 2):
            row = dict(zip(names, map(cleaned, cells), strict=False))
            item = {name: row.get(name, "") for name in columns}
            place = f"row {number}"
            if all(item.values()):
                yield Example(item=item, place=place)
            elif cells:
                yield Skipped(reason="rows with an empty cell", place=place)
    except csv.Error as error:
        raise Unreadable(f"invalid CSV from row {rows.line_num} on: {error}") from error
