"""The prose of a Markdown text: its words, without mark-up, code, tables, and the targets of links."""

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

#: CommonMark, and what note-taking programs add to it.
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
#: A link to another note: [[name]], [[name|words]]; and a note or picture that is shown in place: ![[name]].
EMBEDDED, WIKI_LINK = re.compile(r"!\[\[[^\]\n]*\]\]"), re.compile(r"\[\[(?:[^\]|\n]*\|)?([^\]\n]*)\]\]")
BOX = re.compile(r"\A\[[ xX/-]\][ \t]+")
ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+")
SPACES = re.compile(r"[ \t]{2,}")


def prose(text: str) -> str:
    """Return the words of a Markdown text: its blocks apart by a blank line, the items of a tight list by a line."""
    found: list[str] = []
    tables, tight = 0, False
    for token in PARSER.parse(EMBEDDED.sub("", text)):
        tables += {"table_open": 1, "table_close": -1}.get(token.type, 0)
        if token.type == "paragraph_open":
            tight = token.hidden
        elif token.type == "inline" and not tables and (words := words_of(token)):
            found += ["\n" if tight else "\n\n", words]
            tight = False
    return "".join(found[1:])


def words_of(block: Token) -> str:
    """Return the words of a paragraph, a heading or an item."""
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
