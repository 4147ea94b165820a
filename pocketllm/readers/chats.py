"""Conversations become examples: what the owner wrote is learned, as an answer to what stands before it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from pocketllm.readers.base import Document, Example, Found, Ownerless, ReadOptions, Skipped, cleaned, name_key
from pocketllm.readers.notes import split_text

#: How much of what the others wrote last stands before an answer.
PROMPT_MESSAGES = 8
PROMPT_CHARACTERS = 2000
#: Messages that the owner wrote in a row are one answer up to this length.
ANSWER_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class Message:
    """What somebody wrote."""

    sender: str
    text: str
    #: Other names of the sender, such as an id.
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, oldest first."""

    messages: list[Message]
    owners: frozenset[str] = field(default_factory=frozenset)  #: whom the file itself names as the owner
    plain: bool = False  #: learn what the owner wrote as plain text, not as answers


def examples(conversations: Iterable[Conversation], read_options: ReadOptions) -> Iterator[Found]:
    """Yield what the owner wrote, and at the end why nothing was taken from conversations in which nobody is that."""
    unowned: Counter[str] = Counter()
    for conversation in conversations:
        me = conversation.owners | (frozenset() if conversation.plain and conversation.owners else read_options.me)
        if not me:
            unowned.update(message.sender for message in conversation.messages)
        elif not any(is_from(message, me) for message in conversation.messages):
            yield Skipped(reason="conversations without a message of yours")
        elif conversation.plain:
            own = [message.text for message in conversation.messages if is_from(message, me)]
            yield from plain(own, read_options.max_bytes)
        else:
            yield from answers(conversation.messages, me, read_options.max_bytes)
    if unowned:
        yield Ownerless(messages=dict(unowned))


def is_from(message: Message, me: frozenset[str]) -> bool:
    """Tell whether one of these people wrote the message."""
    return name_key(message.sender) in me or any(name_key(alias) in me for alias in message.aliases)


def plain(texts: Iterable[str], max_bytes: int) -> Iterator[Found]:
    """Yield texts as they are."""
    for text in texts:
        for part in split_text(cleaned(text), max_bytes):
            yield Example(item={"text": part})


def answers(messages: list[Message], me: frozenset[str], max_bytes: int) -> Iterator[Found]:
    """Yield what the owner wrote in a row as the completion of what the others wrote before; plain without it."""
    before: list[Message] = []
    for own, group in groupby((m for m in map(clean, messages) if m.text), key=lambda message: is_from(message, me)):
        if not own:
            before = list(group)
            continue
        for text in in_a_row(message.text for message in group):
            item: Document = {"prompt": prompt_of(before), "completion": text} if before else {"text": text}
            if sum(len(part.encode()) for part in item.values()) <= max_bytes:
                yield Example(item=item)
            else:
                yield from plain([text], max_bytes)
            before = []  # what follows answers nothing but the owner


def clean(message: Message) -> Message:
    """Return a message whose text can be stored."""
    return Message(sender=message.sender, text=cleaned(message.text), aliases=message.aliases)


def in_a_row(texts: Iterable[str]) -> Iterator[str]:
    """Yield the messages that one writer sent in a row, joined by lines up to the length of an answer."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        if waiting and size + len(text) > ANSWER_CHARACTERS:
            yield "\n".join(waiting)
            waiting, size = [], 0
        waiting.append(text)
        size += len(text)
    if waiting:
        yield "\n".join(waiting)


def prompt_of(messages: list[Message]) -> str:
    """Return the last messages as a prompt that ends in a line end; with names if several people wrote them."""
    last = messages[-PROMPT_MESSAGES:]
    named = len({message.sender for message in last}) > 1
    lines = [f"{cleaned(message.sender)}: {message.text}" if named else message.text for message in last]
    while len(lines) > 1 and sum(map(len, lines)) > PROMPT_CHARACTERS:
        del lines[0]
    return "\n".join([*lines[:-1], lines[-1][-PROMPT_CHARACTERS:].lstrip()]) + "\n"
