"""What an import shows: how much of which kind was read, what was left out and why, and what is stored."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pocketllm.cli.texts.sending import added_text
from pocketllm.cli.views import printable
from pocketllm.errors import Document
from pocketllm.readers.gathering import Tally

LONGEST_PLACE = 60


def import_view(tally: Tally, sent: Document) -> RenderableType:
    """Return the whole summary."""
    parts: list[RenderableType] = []
    if tally.kinds:
        parts.append(kinds_table(tally))
    if tally.skipped:
        parts += [Text("Skipped", style="bold"), *skipped_lines(tally)]
    parts.append(Text(outcome_text(tally, sent)))
    return Group(*parts)


def kinds_table(tally: Tally) -> Table:
    """Return what was read, a row for each kind of file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Kind")
    for heading in ("Files", "Texts", "Words"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, count in sorted(tally.kinds.items()):
        table.add_row(kind.value, f"{count.files:,}", f"{count.texts:,}", f"{count.words:,}")
    if len(tally.kinds) > 1:
        table.add_row("total", f"{tally.files:,}", f"{tally.texts:,}", f"{tally.words:,}", style="bold")
    return table


def skipped_lines(tally: Tally) -> list[Text]:
    """Return a line for each reason for which something was left out, the most frequent first."""
    ordered = sorted(tally.skipped.items(), key=lambda skipped: -skipped[1].count)
    return [
        Text(f"  {count.count:>6,}  {printable(reason)} ({places_text(count.places, count.count)})", style="yellow")
        for reason, count in ordered
    ]


def places_text(places: list[str], count: int) -> str:
    """Return where something was left out first."""
    named = ", ".join(printable(place)[-LONGEST_PLACE:] for place in places)
    return named + (", ..." if count > len(places) else "")


def outcome_text(tally: Tally, sent: Document) -> str:
    """Return what became of the texts, in a sentence."""
    if sent.get("dry_run"):
        noun = "text" if tally.texts == 1 else "texts"
        return f"Dry run: found {tally.texts:,} {noun} with {tally.words:,} words, sent none."
    return added_text(sent)
