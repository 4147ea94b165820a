"""The daemon's timer: APScheduler's jobs ask for ticks, and one task makes them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = logging.getLogger(__name__)

#: How late a tick may be before it is made up for.
LATE_SECONDS = 1.0


class Ticker:
    """Calls `tick` at an interval, at given times and when asked, one call at a time.

    Whatever asks for a tick while one runs leads to one more, right after it.
    """

    def __init__(self, tick: Callable[[], Awaitable[tuple[float, Sequence[datetime]]]], *, seconds: float) -> None:
        """tick: returns the seconds until the next one, and times at which to tick besides. seconds: as long as
        `tick` fails.
        """
        self._tick, self._seconds = tick, seconds
        # A suspend or a busy loop makes a job late, and it counts all the same.
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
                await asyncio.wait_for(self._asked.wait(), self._seconds + LATE_SECONDS)
