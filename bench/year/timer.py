"""Some days of the same life by the daemon's own timer, in an event loop of a fake clock."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import time_machine

from pocketllm.server import Ticker

if TYPE_CHECKING:
    from bench.year.__main__ import Life, Seen


class _Selector(selectors.SelectSelector):
    """Passes the time that the loop would wait."""

    def __init__(self, pass_seconds: Callable[[float], None]) -> None:
        super().__init__()
        self._pass_seconds = pass_seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See BaseSelector."""
        found = super().select(0)
        if not found and timeout:
            self._pass_seconds(timeout)
        return found


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock is a life's true time."""

    def __init__(self, life: Life, pass_seconds: Callable[[float], None]) -> None:
        self._life = life
        super().__init__(_Selector(pass_seconds))

    def time(self) -> float:
        """See AbstractEventLoop."""
        return self._life.world.at


def live_by_timer(life: Life) -> Seen:
    """Live a whole life, with each tick when the timer makes it; notes by how much the latest one was late."""
    end, due = life.days * 86_400.0, [life.world.at]
    with time_machine.travel(life.now, tick=False) as clock:

        def pass_seconds(seconds: float) -> None:
            life.pass_until(min(end, life.world.at + seconds))
            clock.move_to(life.now)

        async def tick() -> tuple[float, Sequence[datetime]]:
            if not life.asleep:
                life.seen.late = max(life.seen.late, life.world.at - due[0])
                life.tick()
            settings = life.settings
            seconds = settings.tick_seconds if life.running else settings.idle_tick_seconds
            due[0] = life.world.at + seconds
            return seconds, life.scheduler.due

        async def live() -> None:
            ticker = Ticker(tick, seconds=life.settings.idle_tick_seconds)
            ticker.start()
            while life.world.at < end:
                await asyncio.sleep(3600.0)
            ticker.stop()

        with asyncio.Runner(loop_factory=lambda: _Loop(life, pass_seconds)) as runner:
            runner.run(live())
    life.store.close()
    return life.seen
