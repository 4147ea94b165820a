"""Texts on their way to the disk: what comes in while others are being written is written next, all of it together."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from starlette.concurrency import run_in_threadpool

from pocketllm.storage.texts import Added, NewText, TextStore

#: Enough that some are read while others are written, and few enough that the event loop soon comes round.
AT_ONCE = 8
#: Requests are written together up to so many texts: it bounds how long a worker waits for the database.
_TEXTS_TOGETHER = 1000


class Ingest:
    """One transaction and one wait for the disk for all requests that are there, instead of one each.

    And one thread: those of many requests would wait for each other's lock, and hold the connections meanwhile that
    readers want. For the event loop alone.
    """

    def __init__(self, texts: TextStore, now: Callable[[], datetime]) -> None:
        #: Who brings texts takes a turn, from the whole body to the disk. Where all went ahead at once, the event loop
        #: would be busy with all of them in between any two steps of a request that only looks.
        self.turns = asyncio.Semaphore(AT_ONCE)
        self._texts, self._now = texts, now
        self._waiting: list[tuple[Sequence[NewText], asyncio.Future[Added]]] = []
        self._writer: asyncio.Task[None] | None = None

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
