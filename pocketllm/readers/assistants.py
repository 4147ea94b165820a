"""The conversations.json of ChatGPT's and of Claude's export. The owner is the user who asked."""

from collections.abc import Iterable, Iterator
from typing import Any

from pocketllm.readers.base import Document
from pocketllm.readers.chats import Conversation, Message

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
        yield asked([text for node in shown_branch(conversation) if (text := user_text(node))])


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


def shown_branch(conversation: Document) -> list[Document]:
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


def user_text(message: Document) -> str:
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
