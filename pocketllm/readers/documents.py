"""JSON: tells which export a document is, and reads its conversations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketllm.readers.assistants import chatgpt, claude, is_chatgpt, is_claude
from pocketllm.readers.base import (
    MAX_FILE_BYTES,
    Example,
    Found,
    Kind,
    ReadOptions,
    Skipped,
    Unreadable,
    lines_of,
    open_regular,
    read_text,
)
from pocketllm.readers.chats import Conversation, examples
from pocketllm.readers.messages import conversations_of
from pocketllm.readers.own import is_own
from pocketllm.readers.telegram import is_telegram, telegram

NO_CHAT = "JSON without messages that say who wrote them (sender and text) and without examples"
JSON_LINES = {".jsonl", ".ndjson"}


def read_document(path: Path, read_options: ReadOptions) -> tuple[Kind, Iterator[Found]]:
    """Return what kind of export a JSON document is, and what is in it. Raises Unreadable."""
    document = loaded(path)
    items = document if isinstance(document, list) else [document]
    if items and all(is_own(item) for item in items):
        return Kind.JSONL, (Example(item=item, place=f"item {number}") for number, item in enumerate(items, 1))
    kind = form_of(document) if read_options.format in (None, Kind.CHAT) else read_options.format
    return kind, checked(conversations(kind, document), read_options)


def loaded(path: Path) -> Any:
    """Return a file's JSON. Raises Unreadable."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no valid JSON: {str(error)[:100]}") from error


def form_of(document: Any) -> Kind:
    """Return the kind of export; CHAT for a list of messages in an unknown form."""
    if is_chatgpt(document):
        return Kind.CHATGPT
    if is_claude(document):
        return Kind.CLAUDE
    return Kind.TELEGRAM if is_telegram(document) else Kind.CHAT


def conversations(kind: Kind, document: Any) -> Iterator[Conversation]:
    """Return the conversations of a document. Raises Unreadable when it is not of this kind."""
    fits = {Kind.CHATGPT: is_chatgpt, Kind.CLAUDE: is_claude, Kind.TELEGRAM: is_telegram}
    if kind in fits and not fits[kind](document):
        raise Unreadable(f"no export of {kind.value}")
    readers = {Kind.CHATGPT: chatgpt, Kind.CLAUDE: claude, Kind.TELEGRAM: telegram}
    return readers.get(kind, conversations_of)(document)


def checked(found: Iterator[Conversation], read_options: ReadOptions) -> Iterator[Found]:
    """Yield the examples of conversations. Raises Unreadable when no message is in any."""
    filled = [conversation for conversation in found if conversation.messages]
    if not filled:
        raise Unreadable(NO_CHAT)
    yield from examples(filled, read_options)


def read_lines(path: Path, read_options: ReadOptions) -> Iterator[Found]:
    """Yield the examples of a file with one message, or one conversation, a line. Raises Unreadable."""
    items: list[Any] = []
    size = 0
    with open_regular(path) as file:
        for number, line in lines_of(file):
            item = parsed(line)
            size += len(line or b"")
            if size > MAX_FILE_BYTES:
                raise Unreadable(
                    f"larger than the {MAX_FILE_BYTES // 10**6} MB of messages that are read at once; cut it up"
                )
            if isinstance(item, dict):
                items.append(item)
            elif line is None or line.strip():
                yield Skipped(reason="lines that are no JSON object", place=f"line {number}")
    yield from checked(conversations_of(items), read_options)


def parsed(line: bytes | None) -> Any:
    """Return a line's JSON; None when it is not valid."""
    try:
        return json.loads(line.removeprefix(b"\xef\xbb\xbf")) if line else None
    except (ValueError, RecursionError):
        return None


def first_objects(path: Path, most: int = 5) -> list[Any]:
    """Return the objects on a file's first lines; empty for one document that spans several lines."""
    found: list[Any] = []
    with open_regular(path) as file:
        for number, line in lines_of(file):
            if number > 2 * most or len(found) == most:
                break
            item = parsed(line)
            if isinstance(item, dict):
                found.append(item)
            elif line is not None and line.strip() and path.suffix.lower() not in JSON_LINES:
                break
    alone = len(found) == 1 and path.suffix.lower() not in JSON_LINES
    return [] if alone else found
