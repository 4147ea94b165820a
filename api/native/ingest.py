"""Limits concurrent writes of texts, and gives read requests priority."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from datetime import datetime

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketllm.api.bodies import LARGE_BYTES
from pocketllm.storage.errors import DatabaseLocked
from pocketllm.storage.repositories.texts import Added, NewText, TextStore

#: Concurrent writes, which share transactions: that stores 2.5 times as many texts as one for each. More slow reads
#: down: with 8 and 16, the p99 of GET /jobs was 3.7 and 4.9 times its p50 without load, and texts were stored at 1.26
#: and 1.44 times the rate of a bare endpoint (bench.load).
AT_ONCE = 8
#: The longest that a write waits for reads, some of which, such as downloads, take long.
WAIT_SECONDS = 0.02
#: In the query of a request that waits for the end of a job.
_WAIT = b"wait="
#: The texts of a request, and whose they are.
Request = tuple[Sequence[NewText], str]


class Ingest:
    """Admits requests with texts, and stores them. For one event loop."""

    def __init__(self, texts: TextStore, now: Callable[[], datetime]) -> None:
        self._slots, self._large = asyncio.Semaphore(AT_ONCE), asyncio.Lock()
        self._readers = 0
        self._no_readers = asyncio.Event()
        self._no_readers.set()
        self._texts, self._now = texts, now
        self._waiting: list[tuple[Request, asyncio.Future[Added]]] = []
        self._writer: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def slot(self, size: int = 0) -> AsyncIterator[None]:
        """A slot for a request with texts, from its complete body until it is stored; waits for reads.

        If all ran at once, the event loop would work on all of them between any two steps of a read request. size: of
        the body, in bytes. Of large ones a single one is in memory as texts, and in a transaction.
        """
        async with self._large if size > LARGE_BYTES else nullcontext(), self._slots:
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

        A single task writes, and the requests that wait for it share its next transaction.
        """
        stored: asyncio.Future[Added] = asyncio.get_running_loop().create_future()
        self._waiting.append(((texts, owner), stored))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await stored

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            results = await run_in_threadpool(self._results, [request for request, _ in group])
            for (_, stored), result in zip(group, results, strict=True):
                if stored.cancelled():
                    continue
                if isinstance(result, Added):
                    stored.set_result(result)
                else:
                    stored.set_exception(result)

    def _results(self, requests: Sequence[Request]) -> list[Added | Exception]:
        """What became of each. After a failure, each is tried in a transaction of its own."""
        try:
            return list(self._texts.add_each(requests, now=self._now()))
        except DatabaseLocked as error:  # it has waited, and each of them would wait as long again
            return [error] * len(requests)
        except Exception as error:
            return [error] if len(requests) == 1 else [self._results([one])[0] for one in requests]


class ReadPriorityMiddleware:
    """ASGI middleware that registers read requests with Ingest, except those that wait for a job."""

    def __init__(self, app: ASGIApp, *, ingest: Ingest) -> None:
        self._app, self._ingest = app, ingest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "GET" or _WAIT in scope["query_string"]:
            await self._app(scope, receive, send)
            return
        with self._ingest.reading():
            await self._app(scope, receive, send)
