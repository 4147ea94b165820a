"""JSON: tells which export a document is, and reads its conversations."""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from pocketllm.readers.base import (
    MAX_FILE_BYTES,
    Example,
    Found,
    Kind,
    ReadOptions,
    Skipped,
    Unreadable,
    decoded,
    json_lines,
    open_regular,
    read_head,
)
from pocketllm.readers.chats import examples
from pocketllm.readers.exports import chatgpt, claude, is_chatgpt, is_claude, is_telegram, owner_names, telegram

KINDS = ({"text"}, {"text", "label"}, {"prompt", "completion"}, {"messages"})
NO_OBJECT = "lines that are not an example: {text}, {text, label}, {prompt, completion} or {messages}"
NO_EXPORT = "JSON, but no export of a chat that is known here; write it as lines of {text} or {prompt, completion}"
JSON_LINES = {".jsonl", ".ndjson"}
HEAD_BYTES = 1000
#: No export is nested as deeply, or has as long a name.
MAX_DEPTH, MAX_NAME = 500, 1000
#: Prefixes of values, as ijson writes them.
WHOLE, ITEMS, TELEGRAM_CHATS, TELEGRAM_OWNER = "", "item", "chats.list.item", "personal_information"
#: How each event changes the depth.
DEPTHS = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}


def read_document(path: Path, read_options: ReadOptions) -> tuple[Kind, Iterator[Found]]:
    """Return what kind of export a JSON document is, and what is in it, which is read item by item. Raises Unreadable.

    The items are those of a list, the chats of Telegram's account export, or the document itself.
    """
    account = not _is_list(path)
    items = _items_at(path, TELEGRAM_CHATS if account else ITEMS)
    first = next(items, None)
    if account and first is None:
        items, account = _items_at(path, WHOLE), False
        first = next(items, None)
    items = chain([first], items)
    if not account and is_own(first):
        return Kind.JSONL, _own_items(items)
    asked = read_options.format
    if (account or is_telegram(first)) and asked in (None, Kind.TELEGRAM):
        owners = owner_names(next(_items_at(path, TELEGRAM_OWNER), None))
        return Kind.TELEGRAM, examples(telegram(items, owners), read_options)
    if is_chatgpt(first) and asked in (None, Kind.CHATGPT):
        return Kind.CHATGPT, examples(chatgpt(items), read_options)
    if is_claude(first) and asked in (None, Kind.CLAUDE):
        return Kind.CLAUDE, examples(claude(items), read_options)
    raise Unreadable(f"not a {asked} export" if asked else NO_EXPORT)


def _is_list(path: Path) -> bool:
    return decoded(read_head(path, HEAD_BYTES), final=False).lstrip().startswith("[")


class Source:
    """A JSON file's bytes in UTF-8, of which one item may take MAX_FILE_BYTES."""

    def __init__(self, file: BinaryIO) -> None:
        mark = file.read(3)
        wide = mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        file.seek(3 if mark == codecs.BOM_UTF8 else 0)
        self._file: Any = codecs.EncodedFile(file, "utf-8", "utf-16") if wide else file
        self.since_item = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises Unreadable."""
        data: bytes = self._file.read(size)
        self.since_item += len(data)
        if self.since_item > MAX_FILE_BYTES:
            raise Unreadable(f"has an item larger than {MAX_FILE_BYTES // 10**6} MB; split it into parts")
        return data


def _items_at(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the values at a prefix in a JSON document, one at a time. Raises Unreadable."""
    with open_regular(path) as file:
        try:
            yield from ijson.items(_events(Source(file), prefix), prefix)
        except (ijson.JSONError, ValueError) as error:
            raise Unreadable(f"invalid JSON: {str(error)[:100]}") from error


def _events(source: Source, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """Yield a document's events with their prefixes; what lies outside the items may take any number of bytes."""
    for place, event, value in ijson.parse(_shallow(source)):
        within = place == prefix and event in ("start_map", "start_array", "map_key")
        if not within and (place == prefix or not place.startswith(prefix)):
            source.since_item = 0
        yield place, event, value


def _shallow(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield a document's events. Raises Unreadable where joining the names on the way to each value takes too long."""
    depth = 0
    for event, value in ijson.basic_parse(source, use_float=True):
        depth += DEPTHS.get(event, 0)
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        if event == "map_key" and len(value) > MAX_NAME:
            raise Unreadable(f"has a name of more than {MAX_NAME:,} characters")
        yield event, value


def _own_items(items: Iterable[Any]) -> Iterator[Found]:
    for number, item in enumerate(items, 1):
        place = f"item {number}"
        yield Example(item=item, place=place) if is_own(item) else Skipped(reason=NO_OBJECT, place=place)


def is_own(item: Any) -> bool:
    """Tell whether an object is an example, with or without a source, and holds nothing else."""
    if not isinstance(item, dict) or item.keys() - {"source"} not in KINDS:
        return False
    messages = item.get("messages")
    if messages is None:
        return all(isinstance(value, str) for value in item.values())
    return isinstance(messages, list) and bool(messages) and all(_is_turn(message) for message in messages)


def _is_turn(message: Any) -> bool:
    """Tell whether this is a chat message as the daemon accepts it, and not some other program's."""
    return isinstance(message, dict) and message.keys() - {"weight"} == {"role", "content"}


def read_own(path: Path, _: ReadOptions) -> Iterator[Found]:
    """Yield the examples of a file unchanged, and a Skipped for each other line. Raises Unreadable."""
    for number, line, item in json_lines(path, strict=True):
        place = f"line {number}"
        if line is None:
            yield Skipped(reason="lines too long for one request", place=place)
        elif is_own(item):
            yield Example(item=item, place=place)
        elif line.strip():
            yield Skipped(reason=NO_OBJECT, place=place)
