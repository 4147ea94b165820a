"""Requests that come in together are written together, and each gets its own answer."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from pocketllm.api.ingest import AT_ONCE, Ingest
from pocketllm.storage.database import Database
from pocketllm.storage.store import Store
from pocketllm.storage.texts import Added, NewText, TextStore
from tests.working import NOW


class DiskFull(Exception):
    """There is no room."""


class Watched(TextStore):
    """The real one, which notes how many requests it wrote in each transaction."""

    def __init__(self, database: Database, *, full: bool = False) -> None:
        super().__init__(database)
        self.together: list[int] = []
        self._full = full

    def add_together(self, requests: Sequence[Sequence[NewText]], *, now: datetime) -> list[Added]:
        self.together.append(len(requests))
        if self._full:
            raise DiskFull
        return super().add_together(requests, now=now)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "pocketllm.db"
    Store.open(path).close()
    opened = Database(path)
    yield opened
    opened.close()


def new(*texts: str) -> list[NewText]:
    return [NewText(text=text, source="test") for text in texts]


def add_all(texts: TextStore, requests: Sequence[Sequence[NewText]]) -> list[Added | BaseException]:
    """What each of the requests, which all come in at once, is answered."""

    async def ask() -> list[Added | BaseException]:
        ingest = Ingest(texts, lambda: NOW)
        return await asyncio.gather(*(ingest.add(request) for request in requests), return_exceptions=True)

    return asyncio.run(ask())


def test_what_comes_in_together_is_one_transaction(database: Database) -> None:
    texts = Watched(database)
    answers = add_all(texts, [new(f"text {number}") for number in range(20)])
    assert texts.together == [20]
    assert [texts.get(answer.ids[0]).text for answer in answers if isinstance(answer, Added)] == [
        f"text {number}" for number in range(20)
    ]


def test_a_transaction_does_not_grow_without_end(database: Database) -> None:
    texts = Watched(database)
    many = [new(*(f"{request} {number}" for number in range(600))) for request in range(3)]
    answers = add_all(texts, [*many, new("one more")])
    assert texts.together == [1, 1, 2]
    assert [answer.created for answer in answers if isinstance(answer, Added)] == [600, 600, 600, 1]


def test_an_error_is_told_to_everybody(database: Database) -> None:
    texts = Watched(database, full=True)
    assert [type(answer) for answer in add_all(texts, [new("a"), new("b")])] == [DiskFull, DiskFull]
    assert texts.counts().texts == 0


def test_who_goes_away_takes_nobody_along(database: Database) -> None:
    async def ask() -> Added:
        ingest = Ingest(TextStore(database), lambda: NOW)
        first = asyncio.create_task(ingest.add(new("a")))
        second = asyncio.create_task(ingest.add(new("b")))
        await asyncio.sleep(0)  # both wait for the disk
        first.cancel()
        return await second

    assert asyncio.run(ask()).created == 1
    assert TextStore(database).counts().texts == 2


def test_later_requests_are_written_by_a_later_transaction(database: Database) -> None:
    texts = Watched(database)

    async def ask() -> list[Added]:
        ingest = Ingest(texts, lambda: NOW)
        return [await ingest.add(new(name)) for name in ("a", "b", "a")]

    assert [added.duplicates for added in asyncio.run(ask())] == [0, 0, 1]
    assert texts.together == [1, 1, 1]


def test_who_looks_goes_first(database: Database) -> None:
    async def ask() -> list[str]:
        ingest, order = Ingest(TextStore(database), lambda: NOW), list[str]()

        async def bring() -> None:
            async with ingest.turn():
                order.append("brought")

        with ingest.look():
            with ingest.look():
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
        with ingest.look():
            async with ingest.turn():
                return True

    assert asyncio.run(asyncio.wait_for(ask(), 30))


def test_so_many_take_a_turn_at_once_and_no_more(database: Database) -> None:
    async def ask() -> int:
        ingest, inside, most = Ingest(TextStore(database), lambda: NOW), 0, 0

        async def bring() -> None:
            nonlocal inside, most
            async with ingest.turn():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(bring() for _ in range(5 * AT_ONCE)))
        return most

    assert asyncio.run(ask()) == AT_ONCE
