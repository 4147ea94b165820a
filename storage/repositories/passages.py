"""Full-text search in the owner's texts, by passages of about a hundred words (SQLite's FTS5, ranked by bm25).

The index holds no text, only which words a passage has. A passage's number is its text's number and its place in the
text, so that it needs no table of its own. The index is derived: where it is damaged, it is written anew.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, TextClause
from sqlalchemy import text as sql
from sqlmodel import Session, select

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
#: Bits of a passage's number for its place in the text; the text's number is above them.
_PLACE_BITS = 15

_CREATE = sql("CREATE VIRTUAL TABLE passage USING fts5(words, content='', tokenize='unicode61 remove_diacritics 2')")
_SECURE_DELETE = sql("INSERT INTO passage(passage, rank) VALUES ('secure-delete', 1)")
_INSERT = sql("INSERT INTO passage(rowid, words) VALUES (:number, :words)")
_DELETE = sql("INSERT INTO passage(passage, rowid, words) VALUES ('delete', :number, :words)")
#: With an older SQLite, the index has the words of deleted passages until then.
OPTIMIZE = "INSERT INTO passage(passage) VALUES ('optimize')"
_RANKED = sql("SELECT rowid FROM passage WHERE passage MATCH :query ORDER BY rank LIMIT :limit")


#: A text's number, text and completion.
Indexed = tuple[int, str, str | None]


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

    def mend(self) -> bool:
        """Write the index anew if it is damaged, from the texts; returns whether it was."""
        try:
            with closing(self._database.engine.raw_connection()) as raw:
                raw.cursor().execute("INSERT INTO passage(passage) VALUES ('integrity-check')")
            return False
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CORRUPT_VTAB:
                return False
        # Not by `write`, which mends: where the rest of the file is damaged, too, this fails, once.
        options = {"begin": "BEGIN IMMEDIATE"}
        with self._database.engine.connect().execution_options(**options) as connection, connection.begin():
            connection.execute(sql("DROP TABLE passage"))
            create_index(connection)
            index(connection, connection.execute(select(Text.number, Text.text, Text.completion)))
        return True


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


def create_index(connection: Connection) -> None:
    """Create the index, empty."""
    connection.execute(_CREATE)
    if sqlite3.sqlite_version_info >= (3, 42):  # deleted words leave their pages at once
        connection.execute(_SECURE_DELETE)


def index(connection: Connection, texts: Iterable[Indexed]) -> None:
    """Add stored texts to the index."""
    _write(connection, _INSERT, texts)


def forget(connection: Connection, texts: Iterable[Indexed]) -> None:
    """Remove the same texts from the index."""
    _write(connection, _DELETE, texts)


def _write(connection: Connection, statement: TextClause, texts: Iterable[Indexed]) -> None:
    rows = (
        {"number": number << _PLACE_BITS | place, "words": part}
        for number, text, completion in texts
        for place, part in enumerate(passages_of(text, completion))
    )
    while some := list(islice(rows, _WRITTEN_TOGETHER)):
        connection.execute(statement, some)


def _ranked(session: Session, query: str) -> Iterator[Passage]:
    """The passages that have any of the query's words, the best first."""
    if terms := _terms(query):
        ranked = session.connection().execute(_RANKED, {"query": terms, "limit": _MAX_RANKED})
        for number in ranked.scalars():
            text = session.exec(select(Text).where(Text.number == number >> _PLACE_BITS)).one()
            yield Passage(text=text, words=passages_of(text.text, text.completion)[number % 2**_PLACE_BITS])


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
