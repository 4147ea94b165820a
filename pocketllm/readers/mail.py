"""Mail: mailboxes, read one mail at a time, and single mails."""

import re
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import EmailMessage, MIMEPart
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
# Bytes that are not UTF-8, as Python escapes them, are mostly of Windows' Western encoding.
WINDOWS = {0xDC00 + byte: bytes([byte]).decode("cp1252", "replace") for byte in range(128, 256)}


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
        text = own_words("\n\n".join(map(_part_text, _bodies(message))))
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


def _bodies(part: MIMEPart) -> Iterator[MIMEPart]:
    """Yield the texts that a mail shows, each in one form; files and other mails are none of them."""
    if part.get_content_maintype() == "multipart" and part.get_content_subtype() not in ("alternative", "related"):
        for inner in part.iter_parts():
            yield from _bodies(inner)
    elif not part.get_filename() and (body := part.get_body(preferencelist=("plain", "html"))):
        yield body


def _part_text(part: MIMEPart) -> str:
    """Return the text of a part of a mail, even where its declared encoding is wrong."""
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    try:
        text = cleaned(data.decode(part.get_content_charset("utf-8")))
    except (LookupError, ValueError):
        text = cleaned(data.decode("utf-8", "surrogateescape").translate(WINDOWS))
    if part.get_content_subtype() == "html":
        return html_to_text(text[:MAX_TEXT_BYTES], quotes=frozenset({"blockquote"}))
    return _unwrapped(text) if str(part.get_param("format", "")).lower() == "flowed" else text


def _unwrapped(text: str) -> str:
    """Return text in the `format=flowed` of RFC 3676 with its soft line ends taken out."""
    parts: list[str] = []
    soft = True  # the first line continues nothing
    for line in text.split("\n"):
        stuffed = line.removeprefix(" ")
        apart = stuffed.startswith(">") or stuffed in ("-- ", "- -- ")
        parts.append(stuffed if soft and not (apart and parts) else f"\n{stuffed}")
        soft = stuffed.endswith(" ") and not apart
    return "".join(parts)


# A signed text, where a line that begins with "-" has "- " before it; other armour, and the footer of a mailing list.
SIGNED = re.compile(r"(?ms)^-----BEGIN PGP SIGNED MESSAGE-----\n(?:\S+: [^\n]*\n)*(.*?)(?=^-----BEGIN PGP|\Z)")
ARMOUR = re.compile(r"(?ms)^-----BEGIN PGP ([A-Z ]+)-----.*?(?:^-----END PGP \1-----|\Z)|^_{30,}\n[^\n]*mailing list.*")

WROTE = (
    r"(?:\b(?:wrote|writes|schrieb|geschrieben|a écrit|escribió|escreveu|ha scritto|schreef|skrev|kirjoitti"
    r"|napisał\(a\)|написал)(?!\w)|\d:\d\d.*@[^<>\s]+>:\Z)"
)
# "On Monday Anna wrote:", in the languages above, or any line that names an address or a time and ends in a colon.
ATTRIBUTION = re.compile(rf"{WROTE}|<[^<>\s]+@[^<>\s]+>|\d:\d\d", re.IGNORECASE)
DATED = r"(?:(?:On|Am|Le|El|Il|Op|Em|Den|På|W dniu)\s.*(?:\d[:.]\d\d|\d{4})|[^<(]*[<(][^<(\s]+@)"
WRAPPED = re.compile(DATED, re.IGNORECASE)
# With the date or the address of a mail, it was written by a program, and what follows is that mail.
GENERATED = re.compile(rf"(?=.*{WROTE}){DATED}", re.IGNORECASE)
MAX_ATTRIBUTION = 400
MESSAGE = r"(?:messag\w+|nachricht|mensa\w+|bericht|meddel\w+|melding|viesti|wiadomość|сообщение)"
# "-----Original Message-----", "---------- Forwarded message ---------", "Begin forwarded message:"
OLD_MAIL = re.compile(
    rf"(?i)\s*-{{3,}}\s?(?:(?:[^\s-]+[ -])?{MESSAGE}(?: [^\s-]+)?|Forwarded by [^-]+|On .+ wrote)\s?-{{3,}}\s*\Z"
    rf"|(?:Begin|Anfang der|Début du|Inicio del|Inizio) (?:\S+ )?{MESSAGE}(?: \S+)?\s?:\s*\Z"
)
SENT = "Sent|Gesendet|Envoyé|Enviado|Inviato|Verzonden|Sendt|Skickat"
HEADER = re.compile(rf"[*]?(?:From|Von|De|Da|Van|Från|Fra|{SENT})[*]?\s?:[*]?\s\S")
NEXT_HEADER = re.compile(rf"[*]?(?:{SENT}|Date|To|Datum|An|À|Para|A|Aan)[*]?\s?:")
DEVICE = re.compile(
    r"(?:Sent from (?:my|Mail for|Outlook|Yahoo)\b|Get Outlook for\b|Von meinem \S.{0,40} gesendet|Gesendet von\b"
    r"|Envoyé de(?:puis)? mon\b|Enviado desde mi\b|Enviado do meu\b|Inviato da\b|Verstuurd vanaf mijn\b).{0,60}\Z"
    r"|\s?[_-]{30,}\s*\Z",  # a rule
    re.IGNORECASE,
)


def own_words(text: str) -> str:
    """Return what a mail's sender wrote in it: its text without quotes, other mails, the signature and PGP's armour."""
    kept: list[str] = []
    lines = ARMOUR.sub("", SIGNED.sub(lambda found: re.sub("(?m)^- ", "", found[1]), text)).split("\n")
    below = 0  # the attribution
    for number, line in enumerate(lines):
        if number < below or line.startswith(">") or DEVICE.match(line):
            continue
        if line.rstrip() == "--" or OLD_MAIL.match(line) or _is_header_block(lines, number):
            break
        header, end = _attribution(lines, number)
        follows = next((lines[n] for n in range(end, len(lines)) if lines[n].strip()), ">") if header else ""
        if follows.startswith(">"):
            below = end
        elif GENERATED.match(header):
            break
        else:
            kept.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _is_header_block(lines: list[str], number: int) -> bool:
    """Tell whether a line begins the headers of a mail that is copied into this one."""
    below = lines[number + 1 : number + 3]
    return bool(HEADER.match(lines[number])) and any(NEXT_HEADER.match(line) for line in below)


def _attribution(lines: list[str], number: int) -> tuple[str, int]:
    """Return an attribution such as "On Monday Anna wrote:", which may span three lines, and the line below it."""
    for end in range(number + 1, min(number + 3, len(lines)) + 1):
        header = " ".join(lines[number:end]).rstrip()
        if header.endswith(":") and len(header) <= MAX_ATTRIBUTION and ATTRIBUTION.search(header):
            return header, end
        if not lines[end - 1].strip() or not WRAPPED.match(header):
            break
    return "", 0
