"""What the readers share: kinds of files, the records that readers yield, decoding, and HTML as text."""

import codecs
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO

from pocketllm.storage.words import count_words

Document = dict[str, Any]

#: The daemon's default for the longest single text.
MAX_TEXT_BYTES = 1_000_000
#: The largest file that is read at once; mailboxes and JSON lines are read in pieces and may be larger.
MAX_FILE_BYTES = 256_000_000
#: The longest line of a file that is read line by line.
MAX_LINE_BYTES = 8_000_000


class Kind(StrEnum):
    """The kind of a file."""

    NOTES = "notes"  #: plain text, Markdown or HTML; each file is one text
    MBOX = "mbox"  #: a mailbox
    EML = "eml"  #: one mail
    CHATGPT = "chatgpt"  #: conversations.json of OpenAI's export
    CLAUDE = "claude"  #: conversations.json of Anthropic's export
    TELEGRAM = "telegram"  #: result.json of Telegram Desktop
    WHATSAPP = "whatsapp"  #: the text file of WhatsApp's export
    CSV = "csv"  #: a table of examples
    JSONL = "jsonl"  #: examples as `pocketllm export` writes them


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something that was left out."""

    reason: str
    place: str = ""  #: within the file, such as "line 3"; empty for the file itself


@dataclass(frozen=True, kw_only=True)
class Ownerless:
    """A chat or a mailbox that was left out, since none of its writers is known to be the owner."""

    messages: dict[str, int]  #: by writer, how many


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example as the daemon takes it, with its source only if the file names one."""

    item: Document
    place: str = ""  #: within the file, or with the file's name before it


Found = Example | Skipped | Ownerless


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read files."""

    me: frozenset[str] = field(default_factory=frozenset)  #: the owner's names and addresses, as `name_key` gives them
    format: Kind | None = None
    max_bytes: int = MAX_TEXT_BYTES
    as_written: bool = False  #: notes keep their mark-up


class Unreadable(Exception):
    """A file cannot be read, or not to its end; the message says why and what to do."""


def name_key(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return " ".join(name.split()).casefold()


def item_words(item: Document) -> int:
    """Return the number of words in an example of any kind."""
    texts = [item.get(name) for name in ("text", "prompt", "completion")]
    messages = item.get("messages")
    if isinstance(messages, list):
        texts += [message.get("content") for message in messages if isinstance(message, dict)]
    return sum(count_words(text) for text in texts if isinstance(text, str))


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises Unreadable for a pipe or a device, whose opening could block."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("not a regular file (a pipe or device); save it as a file first")
        return path.open("rb")
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or error}") from error


def read_head(path: Path, size: int) -> bytes:
    """Return a file's first bytes. Raises Unreadable."""
    with open_regular(path) as file:
        return file.read(size)


def read_text(path: Path) -> str:
    """Return a file's text with LF line ends. Raises Unreadable for binary data and for files that are too large."""
    with open_regular(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Unreadable(f"larger than {MAX_FILE_BYTES // 10**6} MB; split it into parts")
    return decoded(data)


def decoded(data: bytes, *, final: bool = True) -> str:
    """Return bytes as text with LF line ends: UTF-8, or UTF-16 with a byte order mark. Raises Unreadable.

    Without `final` the bytes may end in the middle of a character.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and b"\0" in data:
        raise Unreadable("not text: it contains zero bytes; export it as plain text first")
    try:
        text = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")().decode(data, final)
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start}); convert it first, for "
            "example with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cleaned(text: str) -> str:
    """Return a text without zero bytes, which no text should hold, and with lone surrogates replaced."""
    whole = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield a file's lines with their numbers; None in place of a line longer than MAX_LINE_BYTES."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield number, None


def json_lines(path: Path, *, strict: bool = False) -> Iterator[tuple[int, bytes | None, Any]]:
    """Yield a file's lines with their numbers and their JSON, which is None where it is not valid. Raises Unreadable.

    A line is None where it is too long. strict: lone surrogates and NaN are not valid, as for the daemon.
    """
    with open_regular(path) as file:
        for number, line in lines_of(file):
            try:
                value = json.loads((line or b"").removeprefix(codecs.BOM_UTF8))
                if strict:
                    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
            except (ValueError, RecursionError):
                value = None
            yield number, line, value


BREAKS = {"br", "div", "tr", "li", "dt", "dd", "hr"}
PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "pre", "section", "article"}
SILENT = {"script", "style", "head", "title", "template", "noscript"}
MAX_SILENT_DEPTH = 50  # no page goes deeper, and each end tag is looked up among all that are open
SPACES = re.compile(r"[ \t\f\n\xa0]+")


class _Words(HTMLParser):
    def __init__(self, silent: set[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = silent
        self._within: list[str] = []  # silent elements that are open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._silent and len(self._within) < MAX_SILENT_DEPTH:
            if tag not in SILENT and not self._within:
                self.parts.append("\n>\n")
            self._within.append(tag)
        elif tag == "body":
            self._within.clear()  # a head that was never closed
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._within:
            while self._within.pop() != tag:
                pass
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._within:
            self.parts.append(SPACES.sub(" ", data))

    def _break(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self.parts.append("\n\n")
        elif tag in BREAKS:
            self.parts.append("\n")


def html_to_text(html: str, *, quotes: frozenset[str] = frozenset()) -> str:
    """Return the text of an HTML page, with ">" for each of the elements named in `quotes`."""
    parser = _Words(SILENT | quotes)
    # No tag can begin behind the last ">", but the parser would search for one from each "<": quadratic time.
    end = html.rfind(">") + 1
    parser.feed(html[:end] + html[end:].replace("<", "&lt;"))
    parser.close()
    lines = [line.strip() for line in "".join(parser.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
