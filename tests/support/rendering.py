"""What a terminal shows."""

import io

from rich.console import Console, RenderableType


def rendered(view: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
