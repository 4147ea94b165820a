"""Full-text search in the owner's texts, by passages of about a hundred words (SQLite's FTS5, ranked by bm25).

The index holds no text, only which words a passage has. A passage's number is derived from its text's id and its place
in the text, so that it needs no table of its own.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, TextClause
from sqlalchemy import text as sql
from sqlmodel import Session, col, select

from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories.base import Repository
from pocketllm.storage.tables import Text

#: Words of a passage; a longer line is cut.
PASSAGE_WORDS = 100
#: Words of a query that count: the last ones.
MAX_QUERY_WORDS = 64
#: Passages that are written by one statement.
_WRITTEN_TOGETHER = 1000
#: Passages that are ranked.
_MAX_RANKED = 5000
#: Digits of a text's id that a passage's number begins with, and bits for its place in the text.
_ID_DIGITS, _PLACE_BITS = 12, 15
_PREFIX = "text-"

CREATE_INDEX = "CREATE VIRTUAL TABLE passage USING fts5(words, content='', tokenize='unicode61 remove_diacritics 2')"
_INSERT = sql("INSERT INTO passage(rowid, words) VALUES (:number, :words)")
_DELETE = sql("INSERT INTO passage(passage, rowid, words) VALUES ('delete', :number, :words)")
#: Writes the index anew, without what was deleted.
_OPTIMIZE = sql("INSERT INTO passage(passage) VALUES ('optimize')")
_RANKED = sql("SELECT rowid FROM passage WHERE passage MATCH :query ORDER BY rank LIMIT :limit")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A part of a text."""

    text: Text
    words: str


class PassageStore(Repository):
    """Every query about passages."""

    def search(self, query: str, *, limit: int) -> list[Passage]:
        """The passages with the rarest and most of the query's words, the best first."""
        with self._database.read() as session:
            return list(islice(_ranked(session, query), limit))

    def texts(self, query: str, *, after: str | None, limit: int) -> list[Text]:
        """The texts of these passages, from behind the text `after`. Raises NotFound where that is not among them."""
        with self._database.read() as session:
            found = _distinct(passage.text for passage in _ranked(session, query))
            if after is not None and not any(text.id == after for text in found):
                raise NotFound(f"The search results do not contain the text {after!r}.")
            return list(islice(found, limit))


def passages_of(text: str, completion: str | None) -> list[str]:
    """The text in parts: as many whole lines as have no more than PASSAGE_WORDS words together."""
    parts: list[str] = []
    room = 0
    for line in "\n".join(filter(None, (text, completion))).splitlines():
        words = line.split()
        for start in range(0, len(words), PASSAGE_WORDS):
            some = words[start : start + PASSAGE_WORDS]
            if len(some) <= room:
                parts[-1] += "\n" + " ".join(some)
                room -= len(some)
            else:
                parts.append(" ".join(some))
                room = PASSAGE_WORDS - len(some)
    return parts[: 2**_PLACE_BITS]


def index(connection: Connection, texts: Iterable[tuple[str, str, str | None]]) -> None:
    """Add texts to the index. texts: id, text and completion of each."""
    _write(connection, _INSERT, texts)


def forget(connection: Connection, texts: Iterable[tuple[str, str, str | None]]) -> None:
    """Remove the same texts from the index, and their words from its pages."""
    _write(connection, _DELETE, texts)
    connection.execute(_OPTIMIZE)


def _write(connection: Connection, statement: TextClause, texts: Iterable[tuple[str, str, str | None]]) -> None:
    rows = (
        {"number": _number(identity, place), "words": part}
        for identity, text, completion in texts
        for place, part in enumerate(passages_of(text, completion))
    )
    while some := list(islice(rows, _WRITTEN_TOGETHER)):
        connection.execute(statement, some)


def _number(text_id: str, place: int) -> int:
    return int(text_id.removeprefix(_PREFIX)[:_ID_DIGITS], 16) << _PLACE_BITS | place


def _at(session: Session, number: int) -> Iterator[Passage]:
    """The passages with this number: one, but for texts whose ids begin alike."""
    beginning = f"{_PREFIX}{number >> _PLACE_BITS:0{_ID_DIGITS}x}"
    place = number % 2**_PLACE_BITS
    for text in session.exec(select(Text).where(col(Text.id).between(beginning, beginning + "g"))):
        if place < len(parts := passages_of(text.text, text.completion)):
            yield Passage(text=text, words=parts[place])


def _ranked(session: Session, query: str) -> Iterator[Passage]:
    """The passages that have any of the query's words, the best first."""
    if terms := _terms(query):
        ranked = session.connection().execute(_RANKED, {"query": terms, "limit": _MAX_RANKED})
        for number in ranked.scalars():
            yield from _at(session, number)


def _distinct(texts: Iterable[Text]) -> Iterator[Text]:
    seen: set[str] = set()
    for text in texts:
        if text.id not in seen:
            seen.add(text.id)
            yield text


def _terms(query: str) -> str:
    """The query in FTS5's language: any of its words."""
    words = re.findall(r"\w+", query)[-MAX_QUERY_WORDS:]
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
