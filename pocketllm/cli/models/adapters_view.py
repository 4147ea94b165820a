"""Views of adapters: the table, and a change of the served one."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pocketllm.cli.views import loss_text
from pocketllm.errors import Document

BASE = "the base model"


def adapters_table(adapters: Sequence[Document]) -> RenderableType:
    """Return the adapters, newest first: `*` is served, `.` marks its ancestors."""
    if not adapters:
        return Text("No adapters yet. `pocketllm train` starts a job.")
    chain = served_chains(adapters)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "Adapter", "Started from", "Outcome", "Held-out loss", "Model"):
        table.add_column(title, no_wrap=title in ("Adapter", "Started from"))
    for adapter in adapters:
        mark = "*" if adapter["serving"] else "." if adapter["id"] in chain else ""
        losses = f"{loss_text(adapter['held_out_loss_before'])} -> {loss_text(adapter['held_out_loss_now'])}"
        parent = adapter["parent"] or BASE
        table.add_row(mark, adapter["id"], parent, adapter["outcome"], losses, adapter["model"])
    return table


def served_chains(adapters: Sequence[Document]) -> set[str]:
    """Return the ids of the served adapters and their ancestors."""
    parents = {adapter["id"]: adapter["parent"] for adapter in adapters}
    chain: set[str] = set()
    for adapter in adapters:
        link = adapter["id"] if adapter["serving"] else None
        while link is not None and link in parents and link not in chain:
            chain.add(link)
            link = parents[link]
    return chain


def served_text(change: Document) -> str:
    """Return what was served, what is now, and how to undo that."""
    was, serving = change["was"] or BASE, change["serving"] or BASE
    if was == serving:
        return f"{change['model']} already serves {serving}."
    sentences = [f"From the next request on, {change['model']} serves {serving} instead of {was}."]
    if change["skipped"]:
        sentences.append(
            f"Skipped, because damaged or trained on text that was deleted since: {', '.join(change['skipped'])}."
        )
    if change["was"]:
        sentences.append(f"To undo: `pocketllm adapters serve {was}`.")
    return " ".join(sentences)
