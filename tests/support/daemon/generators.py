"""A generator with its real process, and the event loop that it lives in."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketllm.daemon.generation.generator import Event, Generator, Request
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import load_settings
from tests.support.daemon.real_daemon import is_running

#: Generous: a busy machine takes ten times as long as an idle one to import torch.
TIMEOUT_SECONDS = 300.0


@dataclass
class Seconds:
    """A clock whose seconds pass when they are told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class GeneratorBench:
    """A generator, its clock, and what runs in its loop."""

    generator: Generator
    clock: Seconds
    run: Callable[[Awaitable[Any]], Any]

    @property
    def running(self) -> bool:
        pid = self.generator.pid
        return pid is not None and is_running(pid)

    def answer(self, request: Request) -> dict[str, Any]:
        """The summary of the whole answer."""
        summary: dict[str, Any] = self.run(whole(self.generator, request))
        return summary


async def whole(generator: Generator, request: Request) -> dict[str, Any]:
    """The summary of the whole answer, whose pieces make up its text."""
    *pieces, summary = [event async for event in generator.generate(request)]
    assert isinstance(summary, dict)
    assert "".join(map(str, pieces)) == summary.get("text", "")
    return summary


async def first_piece(events: AsyncGenerator[Event]) -> None:
    """Wait for a piece of text."""
    assert isinstance(await anext(events), str)


@contextmanager
def generator_bench(data_dir: Path, *, memory_bytes: int = 10**9, **settings: Any) -> Iterator[GeneratorBench]:
    """A generator with the model `tiny` of this data folder, ended with the block."""
    with asyncio.Runner() as runner:

        def run(awaitable: Awaitable[Any]) -> Any:
            async def bounded() -> Any:
                return await asyncio.wait_for(awaitable, TIMEOUT_SECONDS)

            return runner.run(bounded())

        clock = Seconds()
        chosen = load_settings({"data_dir": data_dir, "model": "tiny", "max_waiting": 1, **settings})
        generator = Generator(DataFolder(data_dir), chosen, memory_bytes=memory_bytes, clock=clock)
        try:
            yield GeneratorBench(generator, clock, run)
        finally:
            run(generator.close())
