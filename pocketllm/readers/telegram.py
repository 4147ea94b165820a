"""The result.json of Telegram Desktop's export: one chat, or all of them."""

from collections.abc import Iterable, Iterator
from typing import Any

from pocketllm.readers.base import Document, name_key
from pocketllm.readers.chats import Conversation, Message

NOT_WRITTEN = ("forwarded_from", "saved_from", "via_bot")  # by the sender


def is_telegram(chat: Any) -> bool:
    """Tell whether a document is the export of one chat."""
    messages = chat.get("messages") if isinstance(chat, dict) else None
    if not isinstance(messages, list) or not {"name", "type", "id"} <= chat.keys():
        return False
    return any(isinstance(message, dict) and "from_id" in message for message in messages[:50])


def telegram(chats: Iterable[Any], owners: frozenset[str]) -> Iterator[Conversation]:
    """Yield the conversations of chats. owners: as `owner_names` gives them."""
    for chat in chats:
        messages = chat.get("messages") if isinstance(chat, dict) else None
        if isinstance(messages, list):
            found = [message for m in messages if isinstance(m, dict) and (message := message_of(m))]
            yield Conversation(messages=found, owners=owners)


def owner_names(person: Any) -> frozenset[str]:
    """Return the id by which messages name the owner of an account's export; empty where it is missing."""
    identity = person.get("user_id") if isinstance(person, dict) else None
    return frozenset({name_key(f"user{identity}")}) if isinstance(identity, int) else frozenset()


def message_of(found: Document) -> Message | None:
    """Return a message; None for a service message, one without text, or one that its sender only forwarded."""
    sender, identity = found.get("from"), found.get("from_id")
    if found.get("type", "message") != "message" or any(found.get(name) for name in NOT_WRITTEN):
        return None
    text = text_of(found.get("text"))
    if not text.strip() or not (isinstance(sender, str) or isinstance(identity, str)):
        return None
    # A deleted account has an id and no name.
    return Message(sender=sender if isinstance(sender, str) else str(identity), text=text, aliases=(str(identity),))


def text_of(text: Any) -> str:
    """Return a text, which is a string or a list of strings and of formatted parts such as links."""
    if isinstance(text, str):
        return text
    parts = text if isinstance(text, list) else []
    words = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(word for word in words if isinstance(word, str))
