"""Reading files in tests as `pocketllm import` does."""

import json
from pathlib import Path
from typing import Any

from pocketllm.readers.base import Document, Example, Found, Kind, Ownerless, ReadOptions, Skipped, name_key
from pocketllm.readers.gathering import Tally, gather
from pocketllm.readers.reading import read
from pocketllm.readers.walk import Entry


def look(path: Path, *me: str, **read_options: Any) -> tuple[Kind | None, list[Found]]:
    """What a file is that its owner named, and what is in it."""
    kind, found = read(
        Entry(path=path, name=path.name, named=True), ReadOptions(me=frozenset(map(name_key, me)), **read_options)
    )
    return kind, list(found)


def items(path: Path, *me: str, **read_options: Any) -> list[Document]:
    """The examples in a file; fails when something else is in it."""
    found = look(path, *me, **read_options)[1]
    assert all(isinstance(one, Example) for one in found), found
    return [one.item for one in found if isinstance(one, Example)]


def reasons(path: Path, *me: str, **read_options: Any) -> list[str]:
    """Why things in a file were left out; fails when there is anything else in it."""
    found = look(path, *me, **read_options)[1]
    assert all(isinstance(one, Skipped) for one in found), found
    return [one.reason for one in found if isinstance(one, Skipped)]


def writers(path: Path) -> dict[str, int]:
    """Who takes part in a chat whose owner nobody has named."""
    (found,) = look(path)[1]
    assert isinstance(found, Ownerless)
    return found.messages


def gathered(*paths: Path, source: str | None = None) -> tuple[list[Document], Tally]:
    """Everything below some paths, as it would be sent, and the count of it."""
    tally = Tally()
    texts = list(gather(list(paths), ReadOptions(), tally, source=source))
    return [text.item for text in texts], tally


def write(path: Path, content: str | bytes | list[Any] | Document) -> Path:
    """Write a file, with what it needs above it: text, bytes, or a document as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list | dict):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
