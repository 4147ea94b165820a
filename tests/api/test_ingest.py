"""Who brings texts: few at a time, written one after the other, behind those who only look."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pocketllm.api.bodies import LARGE_BYTES
from pocketllm.api.native.ingest import AT_ONCE, Ingest, Request
from pocketllm.storage.database import Database
from pocketllm.storage.errors import DatabaseLocked, QuotaExceeded
from pocketllm.storage.repositories.quotas import Quota
from pocketllm.storage.repositories.texts import Added, NewText, TextStore
from pocketllm.storage.store import Store
from pocketllm.storage.tables import PERSON
from tests.support.daemon.workers import NOW


class DiskFull(Exception):
    """There is no room."""


class Watched(TextStore):
    """The real one, which notes how many write at once, and has no room for one text."""

    def __init__(self, database: Database, *, refused: str | None = None, error: type[Exception] = DiskFull) -> None:
        super().__init__(database)
        self.most_at_once = self.transactions = 0
        self._at_once, self._refused, self._error = 0, refused, error

    def add_each(self, requests: Sequence[Request], *, now: datetime) -> list[Added]:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.transactions += 1
        try:
            if any(text.text == self._refused for texts, _ in requests for text in texts):
                raise self._error
            return super().add_each(requests, now=now)
        finally:
            self._at_once -= 1


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "pocketllm.db"
    Store.open(path).close()
    opened = Database(path)
    yield opened
    opened.close()


def new(*texts: str) -> list[NewText]:
    return [NewText(text=text, source="test") for text in texts]


def together(texts: TextStore, *requests: Request) -> list[Any]:
    """What becomes of requests that come in at once: each one's Added, or its error."""

    async def ask() -> list[Any]:
        ingest = Ingest(texts, lambda: NOW)
        adding = (ingest.add(list(brought), owner=owner) for brought, owner in requests)
        return await asyncio.gather(*adding, return_exceptions=True)

    return asyncio.run(ask())


def test_one_is_written_at_a_time(database: Database) -> None:
    texts = Watched(database)
    answers = together(texts, *((new(f"text {number}", "in all"), PERSON) for number in range(20)))
    assert (texts.most_at_once, texts.transactions) == (1, 1)
    assert [texts.get(added.ids[0]).text for added in answers] == [f"text {number}" for number in range(20)]
    assert [added.created for added in answers] == [2] + [1] * 19


def test_an_error_is_told_to_who_brought_the_text_and_the_others_are_written(database: Database) -> None:
    texts = Watched(database, refused="a")
    answers = together(texts, *((new(name), PERSON) for name in "bac"))
    assert [type(answer) for answer in answers] == [Added, DiskFull, Added]
    assert texts.counts().texts == 2


def test_where_the_database_is_locked_a_single_try_has_waited_for_all(database: Database) -> None:
    texts = Watched(database, refused="a", error=DatabaseLocked)
    answers = together(texts, *((new(name), PERSON) for name in "bac"))
    assert [type(answer) for answer in answers] == [DatabaseLocked] * 3
    assert texts.transactions == 1


def test_requests_that_come_at_once_have_one_quota_together(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path / "pocketllm.db", Quota(texts_per_day=5, bytes=10**6))) as store:
        notes = [(new(f"text {number}"), "notes") for number in range(16)]
        answers = together(store.texts, *notes, (new("of another"), "mail"))
        assert [isinstance(answer, QuotaExceeded) for answer in answers] == [False] * 5 + [True] * 11 + [False]
        assert store.texts.counts().texts == 6


def test_who_goes_away_takes_nobody_along(database: Database) -> None:
    async def ask() -> Added:
        ingest = Ingest(TextStore(database), lambda: NOW)
        first = asyncio.create_task(ingest.add(new("a"), owner=PERSON))
        second = asyncio.create_task(ingest.add(new("b"), owner=PERSON))
        await asyncio.sleep(0)  # both have come in
        first.cancel()
        return await second

    [identity] = asyncio.run(ask()).ids
    assert TextStore(database).get(identity).text == "b"


def test_who_looks_goes_first(database: Database) -> None:
    async def ask() -> list[str]:
        ingest, order = Ingest(TextStore(database), lambda: NOW), list[str]()

        async def bring() -> None:
            async with ingest.slot():
                order.append("brought")

        with ingest.reading():
            with ingest.reading():
                bringing = asyncio.create_task(bring())
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append("looked")
        await bringing
        return order

    assert asyncio.run(ask()) == ["looked", "brought"]


def test_who_looks_for_long_is_not_waited_for(database: Database) -> None:
    async def ask() -> bool:
        ingest = Ingest(TextStore(database), lambda: NOW)
        with ingest.reading():
            async with ingest.slot():
                return True

    assert asyncio.run(asyncio.wait_for(ask(), 30))


def test_so_many_take_a_turn_at_once_and_no_more_of_large_ones_one(database: Database) -> None:
    async def ask(size: int) -> int:
        ingest, inside, most = Ingest(TextStore(database), lambda: NOW), 0, 0

        async def bring() -> None:
            nonlocal inside, most
            async with ingest.slot(size):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(bring() for _ in range(5 * AT_ONCE)))
        return most

    assert (asyncio.run(ask(LARGE_BYTES)), asyncio.run(ask(LARGE_BYTES + 1))) == (AT_ONCE, 1)
