"""Notes: plain text, Markdown and HTML files."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pocketllm.readers.base import Example, Found, ReadOptions, Skipped, Unreadable, html_to_text, read_text

MARKDOWN = {".md", ".markdown", ".mdown", ".qmd", ".rmd"}
HTML = {".html", ".htm", ".xhtml"}
SUFFIXES = {*MARKDOWN, *HTML, ".txt", ".text", ".org", ".rst", ".adoc", ".asciidoc", ".tex", ".fountain", ".wiki"}
EMPTY = Skipped(reason="empty")
#: A parsed page takes many times its size.
MAX_PARSED_CHARACTERS = 16_000_000

#: CommonMark, and what note-taking programs add to it.
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
#: A link to another note: [[name]], [[name|words]]; and a note or picture that is shown in place: ![[name]].
EMBEDDED, WIKI_LINK = re.compile(r"!\[\[[^\[\]\n]*\]\]"), re.compile(r"\[\[(?:[^\[\]|\n]*\|)?([^\[\]\n]*)\]\]")
BOX = re.compile(r"\A\[[ xX/-]\][ \t]+")
ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+")
SPACES = re.compile(r"[ \t]{2,}")

FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
FRONT_MATTER_LINE = re.compile(r"\s*\Z|\s*#|\s*-(?:\s|\Z)|\s+\S|[\w\"'][^:]*:(?:\s|\Z)|[\]}]")
BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def read_notes(path: Path, read_options: ReadOptions) -> Iterator[Found]:
    """Yield a file's text, in parts if it is longer than a text may be. Raises Unreadable."""
    text, suffix = read_text(path), path.suffix.lower()
    to_prose: dict[str, Callable[[str], str]] = dict.fromkeys(HTML, html_to_text)
    to_prose |= dict.fromkeys(() if read_options.as_written else MARKDOWN, prose)
    if suffix in MARKDOWN:
        text = without_front_matter(text)
    if suffix in to_prose:
        if len(text) > MAX_PARSED_CHARACTERS:
            raise Unreadable(f"a page larger than {MAX_PARSED_CHARACTERS // 10**6} MB; save it as plain text")
        text = to_prose[suffix](text)
    parts = split_text(text, read_options.max_bytes)
    if not parts:
        yield EMPTY
    for number, part in enumerate(parts, 1):
        yield Example(item={"text": part}, place=f"part {number}" if len(parts) > 1 else "")


def without_front_matter(text: str) -> str:
    """Return a Markdown text without its YAML front matter; a horizontal rule at its head is kept."""
    found = FRONT_MATTER.match(text)
    if found is None:
        return text
    lines = (found[1] or "").split("\n")
    return text[found.end() :] if all(FRONT_MATTER_LINE.match(line) for line in lines) else text


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, which blank lines separate."""
    return [part.strip() for part in BLANK_LINES.split(text) if part.strip()]


def split_text(text: str, max_bytes: int, breaks: Sequence[str] = ("\n\n", "\n", "")) -> list[str]:
    """Split a text into parts of limited size, between paragraphs, else lines, else anywhere."""
    text = text.strip()
    if _byte_count(text) <= max_bytes:
        return [text] if text else []
    between, *finer = breaks
    if not between:
        length = max(1, max_bytes // 4)  # in UTF-8 a character has 4 bytes at most
        return packed([text[start : start + length] for start in range(0, len(text), length)], "", max_bytes)
    pieces: list[str] = []
    for piece in BLANK_LINES.split(text) if between == "\n\n" else text.split(between):
        pieces += [piece] if _byte_count(piece) <= max_bytes else split_text(piece, max_bytes, finer)
    return packed(pieces, between, max_bytes)


def _byte_count(text: str) -> int:
    return len(text.encode())


def packed(pieces: Iterable[str], between: str, most: int, size: Callable[[str], int] = _byte_count) -> list[str]:
    """Return the pieces in order, joined into as few texts of this size as fit; blank pieces are left out."""
    texts: list[list[str]] = []
    total = 0
    for piece in filter(str.strip, pieces):
        more = size(piece) + len(between)
        total += more
        if not texts or total > most:
            texts.append([])
            total = more
        texts[-1].append(piece)
    return [between.join(text).strip() for text in texts]


def prose(text: str) -> str:
    """Return the words of a Markdown text, its blocks apart by a blank line where they are in the text."""
    found: list[str] = []
    tables = end = 0
    for token in PARSER.parse(EMBEDDED.sub("", text)):
        tables += {"table_open": 1, "table_close": -1}.get(token.type, 0)
        if token.type == "inline" and token.map and not tables and (words := _words_of(token)):
            found += ["\n" if token.map[0] == end else "\n\n", words]
            end = token.map[1]
    return "".join(found[1:])


def _words_of(block: Token) -> str:
    parts, addresses = list[str](), 0
    for token in block.children or ():
        if token.info == "auto":  # <https://...>, whose words are its target
            addresses += token.nesting
        elif token.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif token.type in ("text", "code_inline") and not addresses:
            parts.append(token.content)
    words = WIKI_LINK.sub(r"\1", BOX.sub("", "".join(parts)))
    return SPACES.sub(" ", ADDRESS.sub("", words)).strip()
