"""The words of the stored texts, counted for suggestions."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pocketllm.engine.generate.word_counts import WordCounts

#: The newest words that count: more would take a phone seconds to read, and tens of MB.
MAX_WORDS = 300_000
_TEXTS = "SELECT words, text, completion, messages FROM text WHERE label IS NULL AND number > ? ORDER BY number DESC"


class OwnersWords:
    """Counts that follow the database: a text that comes in is added, and where one is deleted all are read anew."""

    def __init__(self, database: Path) -> None:
        self._address = f"{database.absolute().as_uri()}?mode=ro"
        self._opened: sqlite3.Connection | None = None
        self._version, self._last, self._texts = -1, 0, 0
        self._newest: object = None  #: the text with the last number
        self._counts = WordCounts()

    def counts(self) -> WordCounts:
        """The counts as the database is now; as they were before where it cannot be read."""
        with suppress(sqlite3.Error):
            database = self._opened = self._opened or sqlite3.connect(self._address, uri=True)
            (version,) = database.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._follow(database)
                self._version = version
        return self._counts

    def close(self) -> None:
        """Close the database."""
        if self._opened is not None:
            self._opened.close()

    def _follow(self, database: sqlite3.Connection) -> None:
        database.execute("BEGIN")  # so that nothing changes meanwhile
        try:
            texts, last = database.execute("SELECT count(*), ifnull(max(number), 0) FROM text").fetchone()
            (new,) = database.execute("SELECT count(*) FROM text WHERE number > ?", [self._last]).fetchone()
            # Where the last text is deleted, the next one has its number.
            if texts != self._texts + new or _numbered(database, self._last) != self._newest:
                self._last, self._counts = 0, WordCounts()
            self._counts.add(_since(database, self._last))
            self._last, self._texts, self._newest = last, texts, _numbered(database, last)
        finally:
            database.rollback()


def _numbered(database: sqlite3.Connection, number: int) -> object:
    return database.execute("SELECT id, created_at FROM text WHERE number = ?", [number]).fetchone()


def _since(database: sqlite3.Connection, last: int) -> Iterator[str]:
    """The owner's words in the newest texts: of a completion the answer, of a chat the assistant's messages."""
    room = MAX_WORDS
    for words, text, completion, messages in database.execute(_TEXTS, [last]):
        if room <= 0:
            return
        room -= words
        if messages is not None and (said := json.loads(messages)):
            yield from (one["content"] for one in said if one["role"] == "assistant")
        else:
            yield text if completion is None else completion
