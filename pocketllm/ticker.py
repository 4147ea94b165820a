"""The daemon's timer: APScheduler, and a watch over it for when somebody sets the clock."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler

_TICK = "tick"
#: How late a tick may be before it is made up for.
LATE_SECONDS = 1.0


class Ticker:
    """Calls `tick` at an interval, one call at a time.

    APScheduler computes times by the wall clock, so after that is set back by an hour it would wait for an hour. A
    timer of the event loop, whose clock nobody sets, makes up for a tick that is late.
    """

    def __init__(self, tick: Callable[[], Awaitable[float]], now: Callable[[], datetime], *, seconds: float) -> None:
        """tick: returns the seconds until the next one. now: the wall clock. seconds: the first interval."""
        self._tick, self._now, self._seconds = tick, now, seconds
        self._scheduler = AsyncIOScheduler(timezone="UTC")
        self._late: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start ticking, in the running event loop."""
        self._scheduler.add_job(
            self._tick_once,
            "interval",
            id=_TICK,
            seconds=self._seconds,
            next_run_time=self._now(),
            coalesce=True,  # one tick after a suspend
            max_instances=1,
            misfire_grace_time=None,
        )
        self._scheduler.start()
        self._await_next()

    def stop(self) -> None:
        """Stop ticking."""
        if self._late is not None:
            self._late.cancel()
        self._scheduler.shutdown(wait=False)

    def tick_now(self) -> None:
        """Do not wait for the next tick. Called in the event loop."""
        with suppress(JobLookupError):  # ending
            self._scheduler.modify_job(_TICK, next_run_time=self._now())

    def _await_next(self) -> None:
        """Tick if the next tick is late."""
        self._late = asyncio.get_running_loop().call_later(self._seconds + LATE_SECONDS, self.tick_now)

    async def _tick_once(self) -> None:
        if self._late is not None:
            self._late.cancel()
        try:
            seconds = await self._tick()
            if seconds != self._seconds:
                self._seconds = seconds
                with suppress(JobLookupError):  # ending
                    self._scheduler.reschedule_job(_TICK, trigger="interval", seconds=seconds)
        finally:
            self._await_next()
