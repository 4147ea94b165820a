"""HTML as plain text: words and where lines end, nothing else."""

import re
from html.parser import HTMLParser

BREAKS = {"br", "div", "tr", "li", "dt", "dd", "hr"}
PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "pre", "section", "article"}
SILENT = {"script", "style", "head", "title", "template", "noscript"}
MAX_SILENT_DEPTH = 50  # deeper is no page, and each end would be searched for among all of them
SPACES = re.compile(r"[ \t\f\n\xa0]+")


class _Words(HTMLParser):
    def __init__(self, silent: set[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = silent
        self._within: list[str] = []  # silent elements that are open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._silent and len(self._within) < MAX_SILENT_DEPTH:
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


def html_to_text(html: str, *, without: frozenset[str] = frozenset()) -> str:
    """Return the words of an HTML text. What stands in elements named by `without` is left out."""
    parser = _Words(SILENT | without)
    # No tag begins behind the last ">", and the parser would look for its end from each "<" again.
    end = html.rfind(">") + 1
    parser.feed(html[:end] + html[end:].replace("<", "&lt;"))
    parser.close()
    lines = [line.strip() for line in "".join(parser.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
