"""Texts on their way to the disk: what comes in while others are being written is written next, all of it together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketllm.storage.texts import Added, NewText, TextStore

#: One is read while another is written. More would be written together, and be in the way of those who look: with 2, 4
#: and 8 in turn the p99 of GET /jobs was 4.1, 4.8 and 5.0 times its p50 at ease, and a bare endpoint's texts were taken
#: in at 0.8, 1.0 and 1.7 times its rate (bench.load).
AT_ONCE = 2
#: The longest that texts wait for those who look: some looks, such as a download, take long.
WAIT_SECONDS = 0.02
#: Requests are written together up to so many texts: it bounds how long a worker waits for the database.
_TEXTS_TOGETHER = 1000
_EVENTS = "/events"


class Ingest:
    """One transaction and one wait for the disk for all requests that are there, instead of one each.

    And one thread: those of many requests would wait for each other's lock, and hold the connections meanwhile that
    readers want. For the event loop alone.
    """

    def __init__(self, texts: TextStore, now: Callable[[], datetime]) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._looking = 0
        self._nobody_looks = asyncio.Event()
        self._nobody_looks.set()
        self._texts, self._now = texts, now
        self._waiting: list[tuple[Sequence[NewText], asyncio.Future[Added]]] = []
        self._writer: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Who brings texts takes a turn, from the whole body to the disk, and lets those go first who only look.

        Where all went ahead at once, the event loop would be busy with all of them in between any two steps of a
        request that looks.
        """
        async with self._turns:
            if self._looking:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._nobody_looks.wait(), WAIT_SECONDS)
            yield

    @contextmanager
    def look(self) -> Iterator[None]:
        """Somebody looks meanwhile."""
        self._looking += 1
        self._nobody_looks.clear()
        try:
            yield
        finally:
            self._looking -= 1
            if not self._looking:
                self._nobody_looks.set()

    async def add(self, texts: Sequence[NewText]) -> Added:
        """Store all of the texts or none. They are on disk when this returns."""
        added: asyncio.Future[Added] = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, added))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await added

    async def _write(self) -> None:
        while self._waiting:
            together = self._next()
            try:
                done = await run_in_threadpool(
                    self._texts.add_together, [texts for texts, _ in together], now=self._now()
                )
            except Exception as error:
                self._fail(together, error)
                continue
            for (_, answer), added in zip(together, done, strict=True):
                if not answer.done():  # else who asked has gone
                    answer.set_result(added)

    def _next(self) -> list[tuple[Sequence[NewText], asyncio.Future[Added]]]:
        """The requests to write next: one at least."""
        count = texts = 0
        for given, _ in self._waiting:
            texts += len(given)
            if count and texts > _TEXTS_TOGETHER:
                break
            count += 1
        together, self._waiting = self._waiting[:count], self._waiting[count:]
        return together

    @staticmethod
    def _fail(together: Sequence[tuple[Sequence[NewText], asyncio.Future[Added]]], error: Exception) -> None:
        for _, answer in together:
            if not answer.done():
                answer.set_exception(error)


class LookersFirst:
    """ASGI middleware that tells Ingest of those who look. Who waits for events does not count."""

    def __init__(self, app: ASGIApp, *, ingest: Ingest) -> None:
        self._app, self._ingest = app, ingest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See one request through."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] == _EVENTS:
            await self._app(scope, receive, send)
            return
        with self._ingest.look():
            await self._app(scope, receive, send)
