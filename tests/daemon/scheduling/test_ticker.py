"""The daemon's timer, in a real event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from pocketllm.server import Ticker

#: No test waits for it; a second tick that comes has been asked for.
LONG_SECONDS = 3600.0
DEADLINE_SECONDS = 30.0
HOUR = timedelta(hours=1)
Answer = tuple[float, Sequence[datetime]]


def ticks(count: int, tick: Callable[[int, Ticker], Awaitable[Answer]]) -> None:
    """Start a ticker, and stop it when `tick`, which is given each call's number, was called so often.

    Fails where two calls overlap, or more come than were asked for.
    """

    async def run() -> None:
        made, under_way, enough = 0, 0, asyncio.Event()

        async def noted() -> Answer:
            nonlocal made, under_way
            made, under_way = made + 1, under_way + 1
            assert under_way == 1
            try:
                return await tick(made, ticker)
            finally:
                under_way -= 1
                if made >= count:
                    enough.set()

        ticker = Ticker(noted, seconds=0.01)
        ticker.start()
        await asyncio.wait_for(enough.wait(), DEADLINE_SECONDS)
        for _ in range(20):  # whatever else was asked for would begin now
            await asyncio.sleep(0)
        ticker.stop()
        assert made == count

    asyncio.run(run())


def test_a_tick_that_is_asked_for_while_one_runs_follows_it() -> None:
    """However often it is asked for. It was lost before, and the next one came a minute later."""

    async def tick(number: int, ticker: Ticker) -> Answer:
        if number == 1:
            for _ in range(5):
                ticker.tick_now()
                await asyncio.sleep(0)
        return LONG_SECONDS, ()

    ticks(2, tick)


def test_it_ticks_at_the_times_that_the_last_tick_gave() -> None:
    async def tick(number: int, _ticker: Ticker) -> Answer:
        now = datetime.now(UTC)
        return LONG_SECONDS, [now + timedelta(seconds=0.02), now + HOUR] if number == 1 else [now + HOUR]

    ticks(2, tick)


@pytest.mark.parametrize("by", [-HOUR, HOUR], ids=["back", "forward"])
def test_it_goes_on_when_the_clock_is_set(by: timedelta) -> None:
    with time_machine.travel(datetime.now(UTC)) as clock:

        async def tick(number: int, _ticker: Ticker) -> Answer:
            if number == 2:
                asyncio.get_running_loop().call_soon(clock.shift, by)  # when the next tick has been planned
            return (0.01 if number < 4 else LONG_SECONDS), ()

        ticks(4, tick)


def test_it_goes_on_after_a_tick_that_failed() -> None:
    async def tick(number: int, _ticker: Ticker) -> Answer:
        if number < 3:
            raise OSError("the disk is full")
        return LONG_SECONDS, ()

    ticks(3, tick)
