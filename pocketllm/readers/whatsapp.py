"""The text file of WhatsApp's "Export chat", as Android and iOS write it in different languages."""

import re
from collections.abc import Iterator
from pathlib import Path

from pocketllm.readers.base import Unreadable, read_text
from pocketllm.readers.chats import Conversation, Message

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


def read_whatsapp(path: Path) -> Iterator[Conversation]:
    """Yield the conversation in a file. Raises Unreadable."""
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
    yield Conversation(messages=messages)
