"""Turns conversations into examples: each message of the owner completes the messages before it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from pocketllm.readers.base import Document, Example, Found, Ownerless, ReadOptions, Skipped, cleaned, name_key
from pocketllm.readers.notes import packed, split_text

#: How much of the others' last messages becomes the prompt.
PROMPT_MESSAGES = 8
PROMPT_CHARACTERS = 2000
#: Consecutive messages of the owner are joined up to this length.
ANSWER_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message."""

    sender: str
    text: str
    #: Other names of the sender, such as an id.
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, oldest first."""

    messages: list[Message]
    owners: frozenset[str] = field(default_factory=frozenset)  #: the owner's names, if the file itself has them
    plain: bool = False  #: the owner's messages become plain texts, not completions


def examples(conversations: Iterable[Conversation], read_options: ReadOptions) -> Iterator[Found]:
    """Yield what the owner wrote; at the end an Ownerless for the conversations whose owner is unknown."""
    unowned: Counter[str] = Counter()
    for conversation in conversations:
        me = conversation.owners | (frozenset() if conversation.plain and conversation.owners else read_options.me)
        if not me:
            unowned.update(message.sender for message in conversation.messages)
        elif not any(_is_from(message, me) for message in conversation.messages):
            yield Skipped(reason="conversations without messages from you")
        elif conversation.plain:
            own = [message.text for message in conversation.messages if _is_from(message, me)]
            yield from plain(own, read_options.max_bytes)
        else:
            yield from answers(conversation.messages, me, read_options.max_bytes)
    if unowned:
        yield Ownerless(messages=dict(unowned))


def _is_from(message: Message, me: frozenset[str]) -> bool:
    return name_key(message.sender) in me or any(name_key(alias) in me for alias in message.aliases)


def plain(texts: Iterable[str], max_bytes: int) -> Iterator[Found]:
    """Yield texts as they are."""
    for text in texts:
        for part in split_text(cleaned(text), max_bytes):
            yield Example(item={"text": part})


def answers(messages: list[Message], me: frozenset[str], max_bytes: int) -> Iterator[Found]:
    """Yield each run of the owner's messages as a completion of the messages before it; plain text if it is first."""
    before: list[Message] = []
    for own, group in groupby((m for m in map(_clean, messages) if m.text), key=lambda message: _is_from(message, me)):
        if not own:
            before = list(group)
            continue
        for text in packed((message.text for message in group), "\n", ANSWER_CHARACTERS, size=len):
            item: Document = {"prompt": _prompt_of(before), "completion": text} if before else {"text": text}
            if sum(len(part.encode()) for part in item.values()) <= max_bytes:
                yield Example(item=item)
            else:
                yield from plain([text], max_bytes)
            before = []  # the rest of this run follows the owner's own words


def _clean(message: Message) -> Message:
    return Message(sender=message.sender, text=cleaned(message.text), aliases=message.aliases)


def _prompt_of(messages: list[Message]) -> str:
    """Return the last messages as a prompt that ends in a line end; with names if there are several writers."""
    last = messages[-PROMPT_MESSAGES:]
    named = len({message.sender for message in last}) > 1
    lines = [f"{cleaned(message.sender)}: {message.text}" if named else message.text for message in last]
    while len(lines) > 1 and sum(map(len, lines)) > PROMPT_CHARACTERS:
        del lines[0]
    return "\n".join([*lines[:-1], lines[-1][-PROMPT_CHARACTERS:].lstrip()]) + "\n"
