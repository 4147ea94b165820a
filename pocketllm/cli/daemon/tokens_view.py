"""How the apps that are let in are shown."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pocketllm.cli.errors import Document
from pocketllm.cli.views import printable


def tokens_table(tokens: Sequence[Document]) -> RenderableType:
    """Return the apps by name, with what they may do and since when."""
    if not tokens:
        return Text(
            "No app has a token of its own. `pocketllm token create NAME --scope ingest` lets one in to hand over text."
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("App", "May", "Since"):
        table.add_column(title)
    for token in tokens:
        since = datetime.fromisoformat(token["created_at"]).astimezone()
        table.add_row(Text(printable(token["name"])), ", ".join(token["scopes"]), f"{since:%d %b %Y %H:%M}")
    return table
