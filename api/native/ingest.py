"""Texts on their way to the disk: few at a time, and behind those who only look."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketllm.storage.repositories.texts import Added, NewText, TextStore

#: One is read while another is written. More, written by one transaction, are in the way of those who look: with 2, 4
#: and 8 in turn the p99 of GET /jobs was 4.1, 4.8 and 5.0 times its p50 at ease, and texts were taken in at 0.8, 1.0
#: and 1.7 times the rate of a bare endpoint (bench.load).
AT_ONCE = 2
#: The longest that texts wait for those who look: some looks, such as a download, take long.
WAIT_SECONDS = 0.02
_EVENTS = "/events"


class Ingest:
    """Who may bring texts when, and the one who writes them. For the event loop alone."""

    def __init__(self, texts: TextStore, now: Callable[[], datetime]) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._looking = 0
        self._nobody_looks = asyncio.Event()
        self._nobody_looks.set()
        self._texts, self._now = texts, now
        self._writing = asyncio.Lock()

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
        """Store all of the texts or none. They are on disk when this returns.

        In one thread at a time: a second one would only wait for the database, and hold a connection meanwhile that a
        reader may want.
        """
        async with self._writing:
            return await run_in_threadpool(self._texts.add, texts, now=self._now())


class ReadPriorityMiddleware:
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
