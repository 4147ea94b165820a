"""The daemon's timer: APScheduler's jobs ask for ticks, and one task makes them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = logging.getLogger(__name__)


class Ticker:
    """Calls `tick` at an interval, at given times and when asked; what asks during a call leads to one more then."""

    def __init__(self, tick: Callable[[], Awaitable[tuple[float, Sequence[datetime]]]], *, seconds: float) -> None:
        """tick: returns the seconds to the next one, and more times to tick at. seconds: the same while it fails."""
        self._tick, self._seconds = tick, seconds
        # After a suspend a job is late, and counts all the same.
        self._scheduler = AsyncIOScheduler(timezone="UTC", job_defaults={"misfire_grace_time": None})
        self._asked = asyncio.Event()

    def start(self) -> None:
        """Start ticking, in the running event loop."""
        self._scheduler.start()
        self._ticks = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop ticking."""
        self._ticks.cancel()
        self._scheduler.shutdown(wait=False)

    def tick_now(self) -> None:
        """Do not wait for the next tick. Called in the event loop."""
        self._asked.set()

    async def _due(self) -> None:
        self._asked.set()

    async def _run(self) -> None:
        while True:
            self._asked.clear()
            times: Sequence[datetime] = ()
            try:
                self._seconds, times = await self._tick()
            except Exception:
                log.exception("a tick failed")
            self._scheduler.remove_all_jobs()
            self._scheduler.add_job(self._due, "interval", seconds=self._seconds)
            for at in times:
                self._scheduler.add_job(self._due, "date", run_date=at)
            # APScheduler goes by the wall clock: after that is set back by an hour, it would wait for an hour.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._seconds + 1.0)
