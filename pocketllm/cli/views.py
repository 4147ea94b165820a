"""How documents are shown: one kind of table, one list of details, and a value as its field's name says.

Nothing here asks the daemon, reads a clock or prints.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from pocketllm.errors import Document

UNKNOWN = "-"

#: Why the base model answers although an adapter was proven.
WITHDRAWN = {
    "deletion": "withdrawn, since it had learned a text that was deleted; until the rest is learned anew, the base "
    "model answers",
    "rollback": "rolled back; the base model answers",
    "damage": "damaged; the base model answers. Run `pocketllm train`, or restore a backup",
}


def printable(text: str) -> str:
    """Return text without control characters, by which a model's words could control the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def one_line(text: str) -> Text:
    """Return text without line ends and control characters, cut where the screen ends."""
    return Text(" ".join(printable(text).split()), no_wrap=True, overflow="ellipsis")


def bytes_text(count: float) -> str:
    """Return a size for people, in units of 1000."""
    for unit, size in {"GB": 1e9, "MB": 1e6, "kB": 1e3}.items():
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def duration_text(seconds: float) -> str:
    """Return a duration for people, such as 1:05 or 2:03:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def change_text(before: float | None, now: float | None) -> str | None:
    """Return a held-out loss before and now, with the change in percent; None where one is unknown."""
    if before is None or now is None:
        return None
    return f"{before:.4f} -> {now:.4f}" + (f" ({100 * (now - before) / before:+.1f} %)" if before else "")


def value_text(name: str, value: Any) -> Text:
    """Return a field's value in the unit that its name ends with; nothing in it can control the terminal."""
    match value, name.rpartition("_")[2]:
        case Text(), _:
            return value
        case None, _:
            text = UNKNOWN
        case bool(), _:
            text = "yes" if value else "no"
        case list(), _:
            text = "; ".join(value_text(name, one).plain for one in value)
        case _, "bytes":
            text = bytes_text(value)
        case _, "seconds":
            text = duration_text(value)
        case _, "at" | "since" | "until":
            text = f"{datetime.fromisoformat(value).astimezone():%d %b %Y %H:%M:%S}"
        case float(), "loss":
            text = f"{value:.4f}"
        case float(), _:
            text = f"{value:.4g}"
        case int(), "seed":  # to be copied
            text = str(value)
        case int(), _:
            text = f"{value:,}"
        case _:
            text = printable(str(value))
    return Text(text)


def label(name: str) -> str:
    """Return what a field is called: its name without the unit, which the value shows."""
    return re.sub(r"_(bytes|seconds|at)$", "", name).replace("held_out_", "held-out ").replace("_", " ").capitalize()


def table(rows: Sequence[Document], names: Iterable[str], *, empty: str = "") -> RenderableType:
    """Return these fields of the rows below headings, or the sentence `empty` where there are none."""
    if not rows:
        return Text(empty)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        is_number = isinstance(rows[0][name], int | float)
        # An id is there to be copied.
        made.add_column(label(name), overflow="fold", no_wrap=name == "id", justify="right" if is_number else "left")
    for row in rows:
        made.add_row(*(value_text(name, row[name]) for name in names))
    return made


def paged(made: RenderableType, page: Document, command: str) -> RenderableType:
    """Return the table of a page, and below it the command that shows the next one, if there is one."""
    return Group(made, Text(f"Next page: {command} --after {page['next']}", style="dim")) if page["next"] else made


def picked(document: Document, names: Iterable[str]) -> list[tuple[str, Any]]:
    """Return these fields of a document, for `details`."""
    return [(name, document[name]) for name in names]


def details(fields: Iterable[tuple[str, Any]], *, title: str = "") -> RenderableType:
    """Return fields below each other, without those that are None or empty; in a frame if there is a title."""
    grid = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    for name, value in fields:
        if value is not None and value != []:
            grid.add_row(label(name), value_text(name, value))
    return Panel(grid, title=title, title_align="left", expand=False) if title else grid
