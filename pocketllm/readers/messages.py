"""Lists of messages without a format of their own: Discord, Slack, Messenger, or a script's output."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pocketllm.readers.base import Document
from pocketllm.readers.chats import Conversation, Message
from pocketllm.readers.exports import text_of

SENDERS = (
    *("sender", "sender_name", "sendername", "from", "from_name", "author", "author_name", "user_profile", "user"),
    *("user_name", "username", "name", "role", "speaker", "who", "nick", "nickname"),
)
TEXTS = ("text", "content", "contents", "message", "body", "msg")
TIMES = ("timestamp_ms", "timestamp", "ts", "date", "time", "datetime", "created_at")
NAMES = ("name", "username", "nickname", "real_name", "display_name", "global_name", "role", "id")
LISTS = ("messages", "conversation", "history", "chat")


def conversations_of(items: Iterable[Any]) -> Iterator[Conversation]:
    """Yield the conversations in some objects: messages, which are one, or lists of messages under a name."""
    alone, nested = list[Any](), False
    for item in items:
        lists = [item[name] for name in LISTS if isinstance(item.get(name), list)] if isinstance(item, dict) else []
        if lists:
            nested = True
            yield conversation(lists[0])
        elif not nested:
            alone.append(item)
    if not nested and alone:
        yield conversation(alone)


def conversation(items: list[Any]) -> Conversation:
    """Return the messages among some objects, oldest first."""
    found = [(_time_of(item), message) for item in items if isinstance(item, dict) and (message := message_of(item))]
    if _is_newest_first([time for time, _ in found]):
        found.reverse()
    return Conversation(messages=[message for _, message in found])


def _is_newest_first(times: list[float | str | None]) -> bool:
    """Tell whether messages are sorted newest first, as Messenger and Instagram write them."""
    numbers = [time for time in times if isinstance(time, float)]
    texts = [time for time in times if isinstance(time, str)]
    if len(numbers) == len(times):
        return bool(times) and numbers[0] > numbers[-1]
    return len(texts) == len(times) and texts[0] > texts[-1]


def message_of(item: Mapping[str, Any]) -> Message | None:
    """Return an object as a message; None when it has no sender or no text."""
    fields = {str(name).strip().lower(): value for name, value in item.items() if name is not None}
    text = next((text for name in TEXTS if (text := text_of(fields.get(name)))), "")
    names = [found for name in SENDERS for found in _names_of(fields.get(name))]
    # Slack writes joins and leaves as messages of these subtypes.
    if not text.strip() or not names or str(fields.get("subtype", "")).startswith(("channel_", "group_")):
        return None
    if "timestamp_ms" in fields and "sender_name" in fields:
        # Messenger and Instagram write the bytes of UTF-8 as if each were a character.
        text, names = _mended(text), [_mended(name) for name in names]
    return Message(sender=names[0], text=text, aliases=tuple(names[1:]))


def _names_of(value: Any) -> list[str]:
    """Return the names of a sender: one, or those in a profile."""
    if isinstance(value, dict):
        return [name for key in NAMES if isinstance(name := value.get(key), str) and name.strip()]
    return [value] if isinstance(value, str) and value.strip() else []


def _mended(text: str) -> str:
    """Return text with UTF-8 that was decoded as Latin-1 repaired; other text as it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except ValueError:
        return text


def _time_of(item: Document) -> float | str | None:
    """Return when a message was written, in a form that can be compared; else None."""
    value = next((item[name] for name in TIMES if name in item), None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    # RFC 3339 sorts as text; 31.12.2020 does not.
    return value if isinstance(value, str) and value[:4].isdecimal() else None
