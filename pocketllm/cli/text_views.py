"""How texts are shown: a page of them, one with all its words, and what an import has read."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from pocketllm.cli.views import RIGHT, Shown, age_text, details, fitting, one_line, plural, printable, table
from pocketllm.errors import Document

LONGEST_PLACE = 60


def texts_table(page: Document, *, width: int, now: datetime, query: str | None = None) -> RenderableType:
    """Return a page of texts, in their order, in a table for a console of this width. query: what was searched for."""
    columns: dict[str, Shown] = {
        "Text": "id",
        "Kind": "kind",
        "Source": lambda text: one_line(text["source"]),
        "Words": "words",
        "Begins": lambda text: one_line(beginning(text)),
        "Age": lambda text: age_text(text["created_at"], now),
    }
    none = "No texts. Add some with `pocketllm add` or `pocketllm import`."
    empty = none if query is None else "No text contains any of these words."
    made = table(
        page["data"],
        fitting(columns, width, wide=("Kind", "Source", "Words")),
        empty=empty,
        options={
            # An id is there to be copied.
            "Text": {"no_wrap": True, "min_width": max((len(text["id"]) for text in page["data"]), default=0)},
            "Kind": {"no_wrap": True},
            "Source": {"no_wrap": True, "max_width": width // 4},
            "Words": RIGHT,
            "Begins": {"no_wrap": True, "ratio": 1, "overflow": "ellipsis"},
            "Age": RIGHT,
        },
    )
    return (
        Group(made, Text(f"Next page: pocketllm texts --after {page['next']}", style="dim")) if page["next"] else made
    )


def beginning(text: Document) -> str:
    """Return the first words of a text: of an example with an answer the prompt's, of a chat the first message's."""
    messages = text["messages"]
    return str(messages[0].get("content", "") if messages else text["text"])[:200]


def text_details(text: Document, now: datetime) -> RenderableType:
    """Return everything about one text."""
    head = details(
        ("Kind", text["kind"]),
        ("Source", one_line(text["source"])),
        ("Words", text["words"]),
        ("Held out", "yes, to measure what was learned" if text["held_out"] else "no"),
        ("Added", f"{text['created_at']} ({age_text(text['created_at'], now)})"),
        ("Label", text["label"]),
        title=f"Text {text['id']}",
    )
    if text["messages"]:
        parts = [(str(message.get("role")), str(message.get("content"))) for message in text["messages"]]
    elif text["completion"] is not None:
        parts = [("Prompt", text["text"]), ("Completion", text["completion"])]
    else:
        return Group(head, Text(printable(text["text"])))
    return Group(head, *(Text.assemble((printable(name), "bold"), "\n", printable(words)) for name, words in parts))


def import_view(found: Document) -> RenderableType:
    """Return how much of which kind was read, what was skipped and why, and what became of the texts.

    found: a tally as a document, and the daemon's answers or `dry_run`.
    """
    total = {name: found[name] for name in ("files", "texts", "words")}
    rows = [{"kind": kind, **count} for kind, count in sorted(found["kinds"].items())]
    rows += [{"kind": "total", **total}] if len(rows) > 1 else []
    columns: dict[str, Shown] = {"Kind": "kind", "Files": "files", "Texts": "texts", "Words": "words"}
    parts = [table(rows, columns, options=dict.fromkeys(("Files", "Texts", "Words"), RIGHT))] if rows else []
    if found["skipped"]:
        parts.append(Text("Skipped", style="bold"))
    for one in sorted(found["skipped"], key=lambda one: -one["count"]):
        more = ", ..." if one["count"] > len(one["places"]) else ""
        places = ", ".join(printable(place)[-LONGEST_PLACE:] for place in one["places"]) + more
        parts.append(Text(f"  {one['count']:>6,}  {printable(one['reason'])} ({places})", style="yellow"))
    dry_run = f"Dry run: found {plural(found['texts'], 'text')} with {found['words']:,} words, sent none."
    return Group(*parts, Text(dry_run if found.get("dry_run") else added_text(found)))


def added_text(sent: Document) -> str:
    """Return how many texts were added and how many were known, in a sentence or two."""
    created, duplicates = sent["created"], sent["duplicates"]
    known = f" {duplicates:,} {'was' if duplicates == 1 else 'were'} already stored." if duplicates else ""
    return f"Added {plural(created, 'text')}.{known}"
