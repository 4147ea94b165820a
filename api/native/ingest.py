"""Limits concurrent writes of texts, and gives read requests priority."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketllm.storage.repositories.texts import Added, NewText, TextStore

#: Concurrent writes: one request is parsed while another is stored. More slow reads down: with 2, 4 and 8, the p99 of
#: GET /jobs was 4.1, 4.8 and 5.0 times its p50 without load, and texts were stored at 0.8, 1.0 and 1.7 times the rate
#: of a bare endpoint (bench.load).
AT_ONCE = 2
#: The longest that a write waits for reads, some of which, such as downloads, take long.
WAIT_SECONDS = 0.02
_EVENTS = "/events"


class Ingest:
    """Admits requests with texts, and stores them. For one event loop."""

    def __init__(self, texts: TextStore, now: Callable[[], datetime]) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._readers = 0
        self._no_readers = asyncio.Event()
        self._no_readers.set()
        self._texts, self._now = texts, now
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A slot for a request with texts, from its complete body until it is stored; waits for reads.

        If all ran at once, the event loop would work on all of them between any two steps of a read request.
        """
        async with self._slots:
            if self._readers:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._no_readers.wait(), WAIT_SECONDS)
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A read request is running meanwhile."""
        self._readers += 1
        self._no_readers.clear()
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._no_readers.set()

    async def add(self, texts: Sequence[NewText], *, owner: str) -> Added:
        """Store all of the texts or none. They are on disk when this returns.

        In one thread at a time: a second one would wait for the database's write lock while it holds a connection.
        """
        async with self._writing:
            return await run_in_threadpool(self._texts.add, texts, owner=owner, now=self._now())


class ReadPriorityMiddleware:
    """ASGI middleware that registers read requests with Ingest, except long polls for events."""

    def __init__(self, app: ASGIApp, *, ingest: Ingest) -> None:
        self._app, self._ingest = app, ingest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] == _EVENTS:
            await self._app(scope, receive, send)
            return
        with self._ingest.reading():
            await self._app(scope, receive, send)
