"""How the daemon's documents are shown: one kind of table, one list of details, and values as text.

Nothing here asks the daemon, reads a clock or prints; the time is passed in.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from pocketllm.errors import Document

NARROW_COLUMNS = 100  # narrower tables leave columns out, to fit a phone's screen
UNKNOWN = "-"
#: Options of a table's column.
RIGHT = {"justify": "right", "no_wrap": True}
WHOLE = {"no_wrap": True}

#: Why the base model answers although an adapter was proven.
WITHDRAWN = {
    "deletion": "withdrawn, since it had learned a text that was deleted; until the rest is learned anew, the base "
    "model answers",
    "rollback": "rolled back; the base model answers",
    "damage": "damaged; the base model answers. Run `pocketllm train`, or restore a backup",
}

#: What a column shows of a row: a field, by its name, or what a function makes of the row.
Shown = str | Callable[[Document], Any]


def printable(text: str) -> str:
    """Return text without control characters, by which a model's words could control the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def one_line(text: str) -> str:
    """Return text without line ends and control characters."""
    return " ".join(printable(text).split())


def bytes_text(count: float | None) -> str:
    """Return a size for people, in units of 1000."""
    return UNKNOWN if count is None else scaled(count, {" GB": 1e9, " MB": 1e6, " kB": 1e3}, " B")


def count_text(count: float | None) -> str:
    """Return a large number for people, such as 134.5M."""
    return UNKNOWN if count is None else scaled(count, {"B": 1e9, "M": 1e6, "K": 1e3}, "")


def scaled(count: float, units: Mapping[str, float], smallest: str) -> str:
    """Return a number in the largest unit that it reaches, with one digit after the point."""
    for unit, size in units.items():
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}{smallest}"


def duration_text(seconds: float | None) -> str:
    """Return a duration for people, such as 1:05 or 2:03:00."""
    if seconds is None:
        return UNKNOWN
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def moment_text(at: str) -> str:
    """Return an RFC 3339 time in this device's zone."""
    return f"{datetime.fromisoformat(at).astimezone():%d %b %Y %H:%M:%S}"


def age_text(at: str | None, now: datetime) -> str:
    """Return how long ago an RFC 3339 time was, in its largest unit."""
    if at is None:
        return UNKNOWN
    seconds = max(0.0, (now - datetime.fromisoformat(at)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def loss_text(loss: float | None) -> str:
    """Return a loss in nats per token with as many digits as a small gain needs."""
    return UNKNOWN if loss is None else f"{loss:.4f}"


def change_text(row: Document) -> str:
    """Return the held-out loss of a job or an adapter, before and now."""
    before, now = row["held_out_loss_before"], row["held_out_loss_now"]
    return UNKNOWN if before is None and now is None else f"{loss_text(before)} -> {loss_text(now)}"


def plural(count: int, one: str) -> str:
    """Return a number of things; one: what a single one is called, as in "new word"."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def cell(value: Any) -> RenderableType:
    """Return a field's value as it is shown: what is unknown as "-", and nothing that could control the terminal."""
    if isinstance(value, Text):
        return value
    return Text(UNKNOWN if value is None else f"{value:,}" if type(value) is int else printable(str(value)))


def table(
    rows: Sequence[Document],
    columns: Mapping[str, Shown],
    *,
    empty: str = "",
    options: Mapping[str, Mapping[str, Any]] = {},
) -> RenderableType:
    """Return rows below headings, or the sentence `empty` where there are none.

    options: of some columns, by their headings, as rich's `add_column` takes them.
    """
    if not rows:
        return Text(empty)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        settings: dict[str, Any] = {"overflow": "fold", **options.get(heading, {})}
        made.add_column(heading, **settings)
    for row in rows:
        made.add_row(*(cell(row[column] if isinstance(column, str) else column(row)) for column in columns.values()))
    return made


def fitting(columns: Mapping[str, Shown], width: int, *, wide: Collection[str]) -> dict[str, Shown]:
    """Return the columns for a console of this width: without the `wide` ones where it is narrow."""
    return {heading: column for heading, column in columns.items() if width >= NARROW_COLUMNS or heading not in wide}


def details(*fields: tuple[str, Any], title: str = "") -> RenderableType:
    """Return names beside their values, without those that are None; in a frame if there is a title."""
    grid = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    for name, value in fields:
        if value is not None:
            grid.add_row(name, cell(value))
    return Panel(grid, title=title, title_align="left", expand=False) if title else grid
