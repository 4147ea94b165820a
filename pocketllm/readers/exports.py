"""Exports of chats: ChatGPT's and Claude's conversations.json, Telegram Desktop's result.json, WhatsApp's text file."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pocketllm.readers.base import Document, Found, ReadOptions, Unreadable, name_key, read_text
from pocketllm.readers.chats import Conversation, Message, examples

OWNER = "owner"
HUMAN = "human"  # to Claude
HIDDEN = ("is_visually_hidden_from_conversation", "is_user_system_message")


def is_chatgpt(conversation: Any) -> bool:
    """Tell whether a conversation is ChatGPT's."""
    return isinstance(conversation, dict) and isinstance(conversation.get("mapping"), dict)


def is_claude(conversation: Any) -> bool:
    """Tell whether a conversation is Claude's."""
    return isinstance(conversation, dict) and isinstance(conversation.get("chat_messages"), list)


def chatgpt(items: Iterable[Any]) -> Iterator[Conversation]:
    """Yield the conversations of ChatGPT's export, each with the branch that ChatGPT shows."""
    for conversation in filter(is_chatgpt, items):
        yield asked([text for node in _shown_branch(conversation) if (text := _user_text(node))])


def claude(items: Iterable[Any]) -> Iterator[Conversation]:
    """Yield the conversations of Claude's export."""
    for conversation in filter(is_claude, items):
        texts = [
            m.get("text") for m in conversation["chat_messages"] if isinstance(m, dict) and m.get("sender") == HUMAN
        ]
        yield asked([text for text in texts if isinstance(text, str) and text])


def asked(texts: list[str]) -> Conversation:
    """Return a conversation of the owner's messages alone."""
    messages = [Message(sender=OWNER, text=text) for text in texts]
    return Conversation(messages=messages, owners=frozenset({OWNER}), plain=True)


def _shown_branch(conversation: Document) -> list[Document]:
    """Return the messages from the root to the current node; all of them where no node is current.

    An edited question is a second branch of the tree. Both would teach the same words twice.
    """
    mapping: Document = conversation["mapping"]
    identity, nodes, passed = conversation.get("current_node"), list[Document](), set[str]()
    while isinstance(identity, str) and identity not in passed and isinstance(mapping.get(identity), dict):
        passed.add(identity)
        nodes.append(mapping[identity])
        identity = mapping[identity].get("parent")
    path = reversed(nodes) if nodes else (node for node in mapping.values() if isinstance(node, dict))
    return [node["message"] for node in path if isinstance(node.get("message"), dict)]


def _user_text(message: Document) -> str:
    """Return the text of a user's message; empty for other authors and for hidden instructions."""
    author, content, metadata = (message.get(name) for name in ("author", "content", "metadata"))
    if not isinstance(author, dict) or author.get("role") != "user" or not isinstance(content, dict):
        return ""
    if content.get("content_type") not in ("text", "multimodal_text", None):
        return ""
    if isinstance(metadata, dict) and any(metadata.get(name) for name in HIDDEN):
        return ""
    parts = content.get("parts")
    return "\n".join(part for part in parts if isinstance(part, str)) if isinstance(parts, list) else ""


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


DATE = r"\d{1,4}[./-]\s?\d{1,2}[./-]\s?\d{2,4}\.?"
# 23:59, 23.59, 11:59:58 PM, 11:59 p. m.; with any white space
TIME = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\s?[AaPp]\.?\s?[Mm]\.?)?"
# "31.12.20, 23:59", "31/12/20 23:59", "31.12.20 um 23:59", "31/12/20 a las 23:59"
MOMENT = rf"{DATE},?\s(?:\w{{1,4}}\s(?:\w{{1,4}}\s)?)?{TIME}"
LINE = re.compile(rf"[\u200e\u200f]?(?:\[{MOMENT}\]\s?|{MOMENT}\s[-\u2013]\s)(.*)\Z", re.DOTALL)
SENDER = re.compile(r"[\u200e\u200f~\s\u202a]*([^:\n]{1,100}?)\u202c?:\s(.*)\Z", re.DOTALL)
# WhatsApp's own notices begin with a left-to-right mark ("image omitted", "You deleted this message") or stand in
# angle brackets, in the language of the phone ("<Media omitted>", "<This message was edited>").
NOTICE = re.compile(
    r"\u200e|<\w[^<>\n]*\s[^<>\n]*>\Z|null\Z|(?:You deleted this message|This message was deleted)\.?\Z"
)
EDITED = re.compile(r"\u200e?<\w[^<>\n]{0,30}\s[^<>\n]{1,40}>\Z")
MAX_EDITED_CHARACTERS = 80


def looks_like_whatsapp(head: str) -> bool:
    """Tell whether a text's first lines are those of an exported chat."""
    lines = [line[:300] for line in head.split("\n")[:40] if line.strip()]
    matches = [found for line in lines if (found := LINE.match(line))]
    return bool(lines and LINE.match(lines[0])) and any(SENDER.match(found[1]) for found in matches)


def read_whatsapp(path: Path, read_options: ReadOptions) -> Iterator[Found]:
    """Yield what the owner wrote in the chat in a file. Raises Unreadable."""
    messages: list[Message] = []
    sender, lines = "", list[str]()

    def finish() -> None:
        text = "\n".join(lines).strip()
        if sender and text and not NOTICE.match(text):
            edited = EDITED.search(text[-MAX_EDITED_CHARACTERS:])
            kept = text[: len(text) - len(edited[0])] if edited else text
            messages.append(Message(sender=sender, text=kept.replace("\u200e", "")))

    begun = False
    for line in read_text(path).split("\n"):
        start = LINE.match(line)
        if start is None:
            lines.append(line)
            continue
        finish()
        begun = True
        found = SENDER.match(start[1])
        # A line without a name is about the chat, such as who joined.
        sender, lines = (found[1].strip(), [found[2]]) if found else ("", [])
    finish()
    if not begun:
        raise Unreadable("not a WhatsApp export: no line begins with a date, a time and a name")
    yield from examples([Conversation(messages=messages)], read_options)
