"""The owner's texts: a page of them, and one with all its words."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pocketllm.cli.views import NARROW_COLUMNS, age_text, printable
from pocketllm.errors import Document


def texts_table(page: Document, *, width: int, now: datetime, query: str | None = None) -> RenderableType:
    """Return a page of texts, in their order, in a table that fits `width` columns. query: what was searched for."""
    texts = page["data"]
    if not texts and query is not None:
        return Text("No text contains any of these words.")
    if not texts:
        return Text("No texts. Add some with `pocketllm add` or `pocketllm import`.")
    wide = width >= NARROW_COLUMNS
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Text", no_wrap=True, min_width=max(len(text["id"]) for text in texts))  # to be copied
    if wide:
        table.add_column("Kind", no_wrap=True)
        table.add_column("Source", no_wrap=True, max_width=width // 4)
        table.add_column("Words", justify="right", no_wrap=True)
    table.add_column("Begins", no_wrap=True, ratio=1)
    table.add_column("Age", justify="right", no_wrap=True)
    for text in texts:
        row = [Text(str(text["id"]))]
        if wide:
            row += [Text(str(text["kind"])), Text(one_line(text["source"])), Text(f"{text['words']:,}")]
        table.add_row(*row, Text(one_line(beginning(text))), age_text(text.get("created_at"), now))
    last = texts[-1]["id"]
    more = [Text(f"Next page: pocketllm texts --after {last}", style="dim")] if page.get("has_more") else []
    return Group(table, *more)


def beginning(text: Document) -> str:
    """Return the first words of a text: of an example with an answer the prompt's, of a chat the first message's."""
    messages = text.get("messages")
    return str(messages[0].get("content", "") if messages else text["text"])[:200]


def one_line(text: str) -> str:
    """Return text without line ends and control characters."""
    return " ".join(printable(text).split())


def text_details(text: Document, now: datetime) -> RenderableType:
    """Return everything about one text."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row("Kind", str(text["kind"]))
    grid.add_row("Source", Text(one_line(text["source"])))
    grid.add_row("Words", f"{text['words']:,}")
    grid.add_row("Held out", "yes, to measure what was learned" if text["held_out"] else "no")
    grid.add_row("Added", f"{text['created_at']} ({age_text(text['created_at'], now)})")
    if text.get("label") is not None:
        grid.add_row("Label", Text(printable(text["label"])))
    head = Panel(grid, title=f"Text {text['id']}", title_align="left", expand=False)
    return Group(head, *words_of(text))


def words_of(text: Document) -> list[Text]:
    """Return the words themselves, with headings where there are several parts."""
    if messages := text.get("messages"):
        parts = [(str(message.get("role")), str(message.get("content"))) for message in messages]
    elif text.get("completion") is not None:
        parts = [("Prompt", text["text"]), ("Completion", text["completion"])]
    else:
        return [Text(printable(text["text"]))]
    return [line for name, words in parts for line in (Text(printable(name), style="bold"), Text(printable(words)))]
