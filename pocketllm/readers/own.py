"""PocketLLM's own JSON lines, as `pocketllm export` writes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketllm.readers.base import Example, Found, Skipped, json_lines

KINDS = ({"text"}, {"text", "label"}, {"prompt", "completion"}, {"messages"})
NO_OBJECT = "lines that are not an example: {text}, {text, label}, {prompt, completion} or {messages}"


def is_own(item: Any) -> bool:
    """Tell whether an object is an example, with or without a source, and holds nothing else."""
    if not isinstance(item, dict) or item.keys() - {"source"} not in KINDS:
        return False
    messages = item.get("messages")
    if messages is None:
        return all(isinstance(value, str) for value in item.values())
    return isinstance(messages, list) and bool(messages) and all(is_turn(message) for message in messages)


def is_turn(message: Any) -> bool:
    """Tell whether this is a chat message as the daemon accepts it, and not some other program's."""
    return isinstance(message, dict) and message.keys() - {"weight"} == {"role", "content"}


def read_own(path: Path) -> Iterator[Found]:
    """Yield the examples of a file unchanged, and a Skipped for each other line. Raises Unreadable."""
    for number, line, item in json_lines(path, strict=True):
        place = f"line {number}"
        if line is None:
            yield Skipped(reason="lines too long for one request", place=place)
        elif is_own(item):
            yield Example(item=item, place=place)
        elif line.strip():
            yield Skipped(reason=NO_OBJECT, place=place)
