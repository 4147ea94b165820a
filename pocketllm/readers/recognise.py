"""What a file is, by looking at how it begins; its name decides only between text and text."""

import re
from pathlib import Path

from pocketllm.readers.base import Kind, Unreadable, decoded, read_head
from pocketllm.readers.documents import JSON_LINES, first_objects
from pocketllm.readers.notes import HTML, MARKDOWN, SUFFIXES
from pocketllm.readers.own import is_own
from pocketllm.readers.tables import NO_HEADINGS, looks_like_table
from pocketllm.readers.whatsapp import looks_like_whatsapp

HEAD_BYTES = 64_000
EXPORT_IT = "export it as plain text first"
#: What begins files that hold text which cannot be read here, and what to do with them.
SIGNATURES = {
    b"PK\x03\x04": "an archive or an office document; unpack a .zip and name its folder, export a document as text",
    b"\x1f\x8b": "compressed; unpack it first",
    b"%PDF": f"a PDF; {EXPORT_IT}",
    b"{\\rtf": f"rich text; {EXPORT_IT}",
    b"SQLite format 3\0": f"a database; {EXPORT_IT}",
}
#: Pages that are chats, with the words of everybody in them.
CHAT_PAGES = {
    "<title>Exported Data</title>": "Telegram's export as a page; export it again as JSON",
    "DiscordChatExporter": "a Discord export as a page; export it again as JSON",
}
MAILBOX = re.compile(rb"From \S.*\r?\n(?:[>\w][\w-]*:|From )")
MAIL_HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]*):(?:\s|\Z)")
MAIL_HEADERS = {"date", "message-id", "received", "mime-version", "return-path", "delivered-to"}
JSON = re.compile(r"\s*(?:\[\s*[\[{\"\]]|\{\s*[\"}])")


def recognise(path: Path, *, named: bool) -> Kind:
    """Return what a file is. Raises Unreadable for what is of no kind that is read.

    A text file of an unknown name is a note only if its owner has named it, and not a folder that it is in.
    """
    head = read_head(path, HEAD_BYTES)
    for signature, advice in SIGNATURES.items():
        if head.startswith(signature):
            raise Unreadable(advice)
    if MAILBOX.match(head):
        return Kind.MBOX  # its mails say for themselves how they are encoded
    if path.suffix.lower() == ".eml" or is_mail(head.decode("latin-1"), path):
        return Kind.EML
    text = decoded(head, final=len(head) < HEAD_BYTES)
    if looks_like_whatsapp(text):
        return Kind.WHATSAPP
    if not text.strip():
        raise Unreadable("empty")
    if path.suffix.lower() in {".json", *JSON_LINES} or (path.suffix.lower() not in MARKDOWN and JSON.match(text)):
        return json_kind(path)
    return text_kind(path, text, named=named)


def is_mail(head: str, path: Path) -> bool:
    """Tell whether a text begins with the headers of a mail. A note may begin with From: and Date: as well."""
    names = set()
    for line in head.replace("\r\n", "\n").split("\n"):
        found = MAIL_HEADER.match(line)
        if found:
            names.add(found[1].lower())
        elif not line.startswith((" ", "\t")):
            break
    return path.suffix.lower() not in SUFFIXES and "from" in names and bool(names & MAIL_HEADERS)


def json_kind(path: Path) -> Kind:
    """Return what a file of JSON is; which export a document is shows when it is read."""
    objects = first_objects(path)
    return Kind.JSONL if objects and any(is_own(item) for item in objects) else Kind.CHAT


def text_kind(path: Path, text: str, *, named: bool) -> Kind:
    """Return what a text is that is nothing else. Raises Unreadable."""
    suffix = path.suffix.lower()
    for sign, advice in CHAT_PAGES.items():
        if suffix in HTML and sign in text:
            raise Unreadable(advice)
    if looks_like_table(text):
        return Kind.CSV
    if suffix in (".csv", ".tsv"):
        raise Unreadable(NO_HEADINGS)
    if suffix in SUFFIXES or named:
        return Kind.NOTES
    raise Unreadable("a name that is none of a note (.md, .txt, ...); name the file itself to have it read")
