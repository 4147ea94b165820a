"""Reads a file with the reader for its kind.

for entry in walk([Path("notes")]):
    kind, found = read(entry, ReadOptions())
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pocketllm.readers.base import Found, Kind, ReadOptions, Skipped, Unreadable, decoded, json_lines, read_head
from pocketllm.readers.documents import JSON_LINES, is_own, read_document, read_own
from pocketllm.readers.exports import looks_like_whatsapp, read_whatsapp
from pocketllm.readers.mail import read_eml, read_mbox
from pocketllm.readers.notes import HTML, SUFFIXES, read_notes
from pocketllm.readers.tables import read_table
from pocketllm.readers.walk import Entry

SOURCE_CHARACTERS = 200
HEAD_BYTES = 64_000
EXPORT_IT = "export it as plain text first"
#: The first bytes of files whose text cannot be read here, and what to do with them.
SIGNATURES = {
    b"PK\x03\x04": "an archive or office document; unpack a .zip and import its folder, or export a document as text",
    b"\x1f\x8b": "compressed; unpack it first",
    b"%PDF": f"a PDF; {EXPORT_IT}",
    b"{\\rtf": f"rich text; {EXPORT_IT}",
    b"SQLite format 3\0": f"a database; {EXPORT_IT}",
}
TABLE = "a table; read it with --format csv if it is one of examples (text, text and label, prompt and completion)"
#: HTML pages that are chat exports, which hold everybody's words.
CHAT_PAGES = {
    "<title>Exported Data</title>": "a Telegram export in HTML; export it again as JSON",
    "DiscordChatExporter": "a Discord export; write your own messages as lines of {text} or {prompt, completion}",
}
MAILBOX = re.compile(rb"From \S.*\r?\n(?:[>\w][\w-]*:|From )")
MAIL_HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]*):(?:\s|\Z)")
MAIL_HEADERS = {"date", "message-id", "received", "mime-version", "return-path", "delivered-to"}
JSON = re.compile(r"\s*(?:\[\s*[\[{\"\]]|\{\s*[\"}])")
#: The readers by kind. Of a JSON document, `read_document` tells the kind.
READERS: dict[Kind | None, Callable[[Path, ReadOptions], Iterator[Found]]] = {
    Kind.NOTES: read_notes,
    Kind.MBOX: read_mbox,
    Kind.EML: read_eml,
    Kind.WHATSAPP: read_whatsapp,
    Kind.CSV: read_table,
    Kind.JSONL: read_own,
}


def read(entry: Entry, read_options: ReadOptions) -> tuple[Kind | None, Iterator[Found]]:
    """Return a file's kind and what is in it; without a kind, the reason why it is not read.

    The iterator raises no error of the file's: where the file is broken, it yields a Skipped and ends.
    """
    if entry.reason:
        return None, iter([Skipped(reason=entry.reason)])
    try:
        kind = read_options.format or _recognise(entry.path, named=entry.named)
        if kind in READERS:
            found = READERS[kind](entry.path, read_options)
        else:
            kind, found = read_document(entry.path, read_options)
    except (Unreadable, OSError) as error:
        reason = str(error) if isinstance(error, Unreadable) else f"cannot be read: {error.strerror or error}"
        return None, iter([Skipped(reason=reason)])
    return kind, _without_errors(found)


def _without_errors(found: Iterator[Found]) -> Iterator[Found]:
    try:
        yield from found
    except Unreadable as error:
        yield Skipped(reason=str(error))
    except RecursionError:
        yield Skipped(reason="nested too deeply")
    except OSError as error:
        yield Skipped(reason=f"cannot be read to the end: {error.strerror or error}")


def source_name(kind: Kind, name: str) -> str:
    """Return an example's source: the kind and the end of the file's name."""
    prefix = f"{kind.value}: "
    return prefix + name[-(SOURCE_CHARACTERS - len(prefix)) :]


def _recognise(path: Path, *, named: bool) -> Kind | None:
    """Return the kind of a file; None for a JSON document, of which its first item tells. Raises Unreadable.

    What is named like a note is one, but for WhatsApp's export, which is a .txt.
    named: the owner gave this path itself and not a folder above it; then a text file with any suffix is a note.
    """
    head = read_head(path, HEAD_BYTES)
    for signature, advice in SIGNATURES.items():
        if head.startswith(signature):
            raise Unreadable(advice)
    suffix = path.suffix.lower()
    note = suffix in SUFFIXES
    if not note and MAILBOX.match(head):
        return Kind.MBOX  # each mail declares its own encoding
    if suffix == ".eml" or (not note and _is_mail(head.decode("latin-1"))):
        return Kind.EML
    text = decoded(head, final=len(head) < HEAD_BYTES)
    if (suffix == ".txt" or not note) and looks_like_whatsapp(text):
        return Kind.WHATSAPP
    if not text.strip():
        raise Unreadable("empty")
    if suffix in {".json", *JSON_LINES} or (not note and JSON.match(text)):
        first = next((item for _, line, item in json_lines(path) if line is None or line.strip()), None)
        return Kind.JSONL if suffix in JSON_LINES or is_own(first) else None
    return _text_kind(suffix, text, named=named)


def _is_mail(head: str) -> bool:
    """Tell whether a text begins with the headers of a mail."""
    names = set()
    for line in head.replace("\r\n", "\n").split("\n"):
        found = MAIL_HEADER.match(line)
        if found:
            names.add(found[1].lower())
        elif not line.startswith((" ", "\t")):
            break
    return "from" in names and bool(names & MAIL_HEADERS)


def _text_kind(suffix: str, text: str, *, named: bool) -> Kind:
    for sign, advice in CHAT_PAGES.items():
        if suffix in HTML and sign in text:
            raise Unreadable(advice)
    if suffix in (".csv", ".tsv"):
        raise Unreadable(TABLE)
    if suffix in SUFFIXES or named:
        return Kind.NOTES
    raise Unreadable("not named like a note (.md, .txt, ...); to read it anyway, give the path of the file itself")
