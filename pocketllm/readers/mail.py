"""Mail: mailboxes, read one mail at a time, and single mails."""

import re
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from email.parser import BytesHeaderParser
from email.utils import getaddresses
from pathlib import Path

from pocketllm.readers.base import (
    MAX_TEXT_BYTES,
    Example,
    Found,
    Ownerless,
    ReadOptions,
    Skipped,
    Unreadable,
    cleaned,
    html_to_text,
    lines_of,
    name_key,
    open_regular,
)
from pocketllm.readers.notes import split_text

#: How much of a mail is read; the text comes before the attachments.
MAIL_BYTES = 16_000_000
#: The longest headers of a mail; no mail server accepts longer ones.
HEADER_BYTES = 200_000
# Headers that the standard library parses in quadratic time.
HUGE_HEADER = re.compile(rb"^content-[a-z-]{1,40}:(?:[^\r\n]|\r?\n[ \t]){4000}", re.IGNORECASE | re.MULTILINE)
FROM_CHARACTERS = 2000
QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
# What the standard library's parser raises on malformed mails.
BROKEN = (LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError, MessageError)
QUOTES = frozenset({"blockquote"})


def read_mbox(path: Path, read_options: ReadOptions) -> Iterator[Found]:
    """Yield the text of each mail in a mailbox. Raises Unreadable.

    If the owner's names are not given and several people wrote the mails, it yields an Ownerless alone.
    """
    if not read_options.me and len(messages := _mails_by_address(path)) > 1:
        yield Ownerless(messages=messages)
        return
    number = 0
    for number, data in enumerate(_split_mbox(path), 1):
        # A mailbox escapes a body's line that begins with "From ".
        yield from _read_mail(QUOTED_FROM.sub(rb"\1", data), f"mail {number}", read_options)
    if not number:
        raise Unreadable("not a mailbox: no line begins with 'From '")


def _mails_by_address(path: Path) -> dict[str, int]:
    found: Counter[str] = Counter()
    for data in _split_mbox(path):
        if HUGE_HEADER.search(data):
            continue
        try:
            pairs = _from_pairs(BytesHeaderParser(policy=policy.default).parsebytes(data))
        except BROKEN:
            continue
        found.update(name_key(address) for _, address in pairs[:1] if address)
    return dict(found)


def read_eml(path: Path, read_options: ReadOptions) -> Iterator[Found]:
    """Yield the text of the mail in a file. Raises Unreadable."""
    with open_regular(path) as file:
        data = file.read(MAIL_BYTES)
    yield from _read_mail(data, "", read_options)


def _split_mbox(path: Path) -> Iterator[bytes]:
    """Yield the mails of a mailbox, each without the line that begins it and no longer than MAIL_BYTES."""
    lines: list[bytes] | None = None
    size, blank = 0, True
    with open_regular(path) as file:
        for _, line in lines_of(file):
            if blank and line is not None and line.startswith(b"From "):
                if lines is not None:
                    yield b"".join(lines)
                lines, size = [], 0
            elif lines is not None and line is not None and size < MAIL_BYTES:
                lines.append(line)
                size += len(line)
            blank = line is not None and not line.strip(b"\r\n")
    if lines is not None:
        yield b"".join(lines)


def _read_mail(data: bytes, place: str, read_options: ReadOptions) -> Iterator[Found]:
    if HUGE_HEADER.search(data):
        yield Skipped(reason="broken mails", place=place)
        return
    try:
        message = message_from_bytes(data, policy=policy.default)
        if not 0 < sum(len(name) + len(value) for name, value in message.raw_items()) <= HEADER_BYTES:
            yield Skipped(reason="broken mails", place=place)
            return
        if read_options.me and not read_options.me & _senders(message):
            yield Skipped(reason="mails from other people", place=place)
            return
        text = _mail_text(message)
    except BROKEN:
        yield Skipped(reason="broken mails", place=place)
        return
    parts = split_text(text, read_options.max_bytes)
    if not parts:
        yield Skipped(reason="mails without text of their own", place=place)
    for part in parts:
        yield Example(item={"text": part}, place=place)


def _senders(message: EmailMessage) -> set[str]:
    return {name_key(part) for pair in _from_pairs(message) for part in pair if part}


def _from_pairs(message: EmailMessage) -> list[tuple[str, str]]:
    """Return whom a mail is from: names, which may be empty, with addresses."""
    lines = [str(value)[:FROM_CHARACTERS] for name, value in message.raw_items() if name.lower() == "from"]
    return getaddresses([str(make_header(decode_header(line))) for line in lines])


def _mail_text(message: EmailMessage) -> str:
    """Return what a mail's sender wrote in it, without quotes; empty when it holds no text."""
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return ""
    text = _part_text(body)
    if body.get_content_subtype() == "html":
        return own_words(html_to_text(text[:MAX_TEXT_BYTES], without=QUOTES))
    flowed = str(body.get_param("format", "")).lower() == "flowed"
    return own_words(_unwrapped(text) if flowed else text)


def _part_text(part: Message) -> str:
    """Return the text of a part of a mail, even where its declared encoding is wrong."""
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    charset = part.get_content_charset("utf-8")
    try:
        return cleaned(data.decode(charset))
    except (LookupError, ValueError):
        return cleaned(data.decode("utf-8", "replace"))


def _unwrapped(text: str) -> str:
    """Return text in the `format=flowed` of RFC 3676 with its soft line ends taken out."""
    parts: list[str] = []
    soft = True  # the first line continues nothing
    for line in text.split("\n"):
        stuffed = line.removeprefix(" ")
        apart = stuffed.startswith(">") or stuffed == "-- "
        parts.append(stuffed if soft and not (apart and parts) else f"\n{stuffed}")
        soft = stuffed.endswith(" ") and not apart
    return "".join(parts)


WROTE = r"wrote|schrieb|geschrieben|a écrit|escribió|escreveu|ha scritto|schreef|skrev|kirjoitti|napisał\(a\)|написал"
# "On Monday Anna wrote:", in the languages above, or any line that names an address or a time and ends in a colon.
ATTRIBUTION = re.compile(rf"(?:\b(?:{WROTE})\b.*|<[^<>\s]+@[^<>\s]+>.*|\d{{1,2}}:\d\d.*):\s*\Z", re.IGNORECASE)
ATTRIBUTION_START = re.compile(r"(?:On|Am|Le|El|Il|Op|Em|Den|På|W dniu)\s.{0,200}\Z", re.IGNORECASE)
# "-----Original Message-----", "---------- Forwarded message ---------"
OLD_MAIL = re.compile(r"\s*-{3,}\s?\w[^-]{3,60}-{3,}\s*\Z")
MAX_BLANKS = 3  # empty lines between an attribution and its quote
HEADER = re.compile(r"[*]?(?:From|Von|De|Da|Van|Från|Fra)[*]?:[*]?\s\S")
NEXT_HEADER = re.compile(r"[*]?(?:Sent|Date|To|Gesendet|Datum|An|Envoyé|À|Enviado|Para|Inviato|A|Verzonden|Aan)[*]?:")
DEVICE = re.compile(
    r"(?:Sent from (?:my|Mail for|Outlook|Yahoo)\b|Get Outlook for\b|Von meinem \S.{0,40} gesendet|Gesendet von\b"
    r"|Envoyé de(?:puis)? mon\b|Enviado desde mi\b|Enviado do meu\b|Inviato da\b|Verstuurd vanaf mijn\b).{0,60}\Z",
    re.IGNORECASE,
)


def own_words(text: str) -> str:
    """Return a mail's text without quoted lines, their attributions, forwarded mails and the signature."""
    kept: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(">"):
            _drop_attribution(kept)
        elif line.rstrip() == "--" or OLD_MAIL.match(line) or _is_header_block(lines, number):
            break
        elif not DEVICE.match(line):
            kept.append(line.rstrip())
    # An attribution may stand without its quote, which was HTML or was cut.
    _drop_attribution(kept)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _is_header_block(lines: list[str], number: int) -> bool:
    """Tell whether a line begins the headers of a mail that is copied into this one."""
    below = lines[number + 1 : number + 3]
    return bool(HEADER.match(lines[number])) and any(NEXT_HEADER.match(line) for line in below)


def _drop_attribution(kept: list[str]) -> None:
    """Remove an attribution such as "On Monday Anna wrote:" from the end; it may span two lines."""
    end = len(kept)
    while end and end > len(kept) - MAX_BLANKS and not kept[end - 1]:
        end -= 1
    if not end or not ATTRIBUTION.search(kept[end - 1][-300:]):
        return
    first = end - 1
    if not ATTRIBUTION_START.match(kept[first]) and first and ATTRIBUTION_START.match(kept[first - 1]):
        first -= 1
    del kept[first:]
