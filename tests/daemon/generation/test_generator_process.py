"""The generator with its real process and a tiny model: what it answers, when it is there, what kills it."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pocketllm.daemon.errors import ClientGone, GenerationTooLarge, GeneratorBusy, GeneratorFailed, ModelNotReady
from pocketllm.daemon.generation.process import PIECE_SECONDS, merged
from pocketllm.daemon.generation.service import Done, GenerationRequest, Generator, Piece, SuggestionRequest
from pocketllm.engine.errors import BadRequest
from tests.support.daemon.real_daemon import is_running
from tests.support.models.tiny_models import CHAT_TEMPLATE, edit_json, tiny_model_folder

T = TypeVar("T")
KEEP_ALIVE_SECONDS = 300.0
#: Generous: a busy machine takes ten times as long as an idle one to import torch.
TIMEOUT_SECONDS = 300.0
#: The model's context, in tokens.
CONTEXT = 32_768
#: Far more than a test waits for: if it were not broken off, the next request would not be answered in time.
ENDLESS = GenerationRequest(prompt="Wind", max_tokens=CONTEXT - 100, temperature=0, seed=1)
SHORT = GenerationRequest(prompt="Wind", max_tokens=8, temperature=1.0, seed=1)


@dataclass
class Clock:
    """Seconds that pass when they are told to."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Bench:
    """A generator, the loop that it lives in, and its clock."""

    generator: Generator
    clock: Clock
    run: Callable[[Awaitable[Any]], Any]

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        pid = self.generator.pid
        return pid is not None and is_running(pid)

    def answer(self, request: GenerationRequest) -> dict[str, Any]:
        """The whole answer; its pieces make up its text."""
        summary: dict[str, Any] = self.run(whole(self.generator, request))
        return summary


async def whole(generator: Generator, request: GenerationRequest) -> dict[str, Any]:
    pieces: list[str] = []
    summary: dict[str, Any] = {}
    async for event in generator.generate(request):
        if isinstance(event, Done):
            summary = event.summary
        else:
            pieces.append(event.text)
    assert "".join(pieces) == summary["text"]
    return summary


async def suggestions(generator: Generator, request: SuggestionRequest) -> list[dict[str, Any]]:
    [done] = [event async for event in generator.generate(request)]
    assert isinstance(done, Done)
    found: list[dict[str, Any]] = done.summary["suggestions"]
    return found


async def first_piece(events: AsyncGenerator[Piece | Done]) -> None:
    assert isinstance(await anext(events), Piece)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `tiny`, whose context is wide enough for an endless answer."""
    folder = tmp_path_factory.mktemp("models")
    edit_json(tiny_model_folder(folder) / "config.json", max_position_embeddings=CONTEXT)
    return folder


@pytest.fixture(scope="module")
def bench(models: Path) -> Iterator[Bench]:
    """One generator for all tests of this module; each finds it usable, and leaves it so."""
    clock = Clock()
    with asyncio.Runner() as runner:

        def run(awaitable: Awaitable[T]) -> T:
            async def bounded() -> T:
                return await asyncio.wait_for(awaitable, TIMEOUT_SECONDS)

            return runner.run(bounded())

        generator = Generator(
            models / "tiny",
            database=Path("none.db"),
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            max_waiting=1,
            clock=clock,
            socket=models / "llama.sock",
        )
        yield Bench(generator, clock, run)
        run(generator.close())


def test_the_process_is_there_from_the_first_request_on(bench: Bench) -> None:
    bench.run(bench.generator.close())
    assert (bench.generator.pid, bench.generator.idle_seconds_left) == (None, None)
    bench.answer(SHORT)
    pid = bench.generator.pid
    assert bench.running
    bench.answer(SHORT)
    assert bench.generator.pid == pid


def test_a_prompt_is_answered_with_a_text_and_how_it_was_made(bench: Bench) -> None:
    summary = bench.answer(SHORT)
    assert summary["text"]
    assert summary["finish_reason"] in ("stop", "length")
    assert summary["prompt_tokens"] == 1 + len("Wind")  # a token a byte, behind the separator
    assert 1 <= summary["completion_tokens"] <= 8
    assert summary["tokens_per_second"] > 0


def test_pieces_of_a_moment_go_out_as_one() -> None:
    moments = iter([10.0, 10.01, 10.02, 10.02 + PIECE_SECONDS, 10.03 + PIECE_SECONDS])
    assert list(merged(iter("abcde"), clock=lambda: next(moments))) == ["a", "bcd", "e"]
    assert list(merged(iter(()))) == []


def test_a_chat_is_answered_and_the_seed_decides_the_text(bench: Bench) -> None:
    chat = GenerationRequest(messages=[{"role": "user", "content": "Hi!"}], max_tokens=4, temperature=0)
    assert "<|im_start|>" in CHAT_TEMPLATE
    assert bench.answer(chat)["prompt_tokens"] == len("*user\nHi!*\n*assistant\n")  # * is one special token
    requests = [replace(SHORT, max_tokens=12, seed=seed) for seed in (0, 1, 2, 7)]
    first, again = ([bench.answer(request)["text"] for request in requests] for _ in range(2))
    assert first == again and len(set(first)) > 1


def test_a_faulty_request_is_refused_and_the_process_survives(bench: Bench, tmp_path: Path) -> None:
    bench.answer(SHORT)
    pid = bench.generator.pid
    too_long = GenerationRequest(prompt="x" * CONTEXT, max_tokens=8)
    no_adapter = GenerationRequest(prompt="Wind", adapter=tmp_path / "none")
    with pytest.raises(
        BadRequest, match=rf"{CONTEXT + 1} tokens leave no room in the model's context of {CONTEXT} tokens"
    ):
        bench.answer(too_long)
    with pytest.raises(BadRequest, match="none cannot be read"):
        bench.answer(no_adapter)
    bench.answer(SHORT)
    assert bench.generator.pid == pid


def test_it_is_unloaded_when_it_has_been_idle_for_as_long_as_the_last_request_said(bench: Bench) -> None:
    bench.answer(replace(SHORT, keep_alive_seconds=inf))
    pid = bench.generator.pid
    assert pid is not None
    bench.clock.seconds += 10**9
    assert (bench.running, bench.generator.idle_seconds_left) == (True, None)
    bench.run(bench.generator.unload_if_idle())
    bench.answer(replace(SHORT, keep_alive_seconds=0))
    assert (bench.generator.pid, bench.generator.idle_seconds_left) == (pid, 0)
    bench.answer(SHORT)  # says nothing: the time of the settings
    bench.clock.seconds += KEEP_ALIVE_SECONDS - 1
    assert bench.generator.idle_seconds_left == pytest.approx(1)
    bench.run(bench.generator.unload_if_idle())
    assert bench.running and bench.generator.pid == pid
    bench.clock.seconds += 1
    bench.run(bench.generator.unload_if_idle())
    assert not is_running(pid)


def test_it_is_unloaded_sooner_where_somebody_waits_for_its_memory(bench: Bench) -> None:
    bench.answer(replace(SHORT, keep_alive_seconds=inf))
    bench.generator.max_keep_alive = 20.0
    assert not bench.run(bench.generator.unload_if_idle())
    bench.clock.seconds += 20
    assert bench.run(bench.generator.unload_if_idle()) and not bench.running
    bench.generator.max_keep_alive = inf


def test_unloading_leaves_the_socket_of_the_next_process(bench: Bench, models: Path) -> None:
    socket = models / "llama.sock"
    bench.answer(replace(SHORT, keep_alive_seconds=0))

    async def scenario() -> None:
        bench.generator.before_start = lambda: socket.touch()  # as the next process's llama.cpp makes it
        unloading = asyncio.create_task(bench.generator.unload_if_idle())
        await asyncio.sleep(0)
        await asyncio.gather(unloading, whole(bench.generator, SHORT))

    bench.run(scenario())
    bench.generator.before_start = lambda: None
    assert bench.running and socket.exists()


def test_another_model_answers_next_and_not_what_was_asked_of_the_former(bench: Bench, models: Path) -> None:
    tiny, other = bench.generator.model, tiny_model_folder(models, name="other")

    async def scenario() -> int | None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            waiting = asyncio.create_task(whole(bench.generator, SHORT))
            await asyncio.sleep(0)
            pid, bench.generator.model = bench.generator.pid, other
            await first_piece(events)
        with pytest.raises(ModelNotReady, match="other has become the model meanwhile"):
            await waiting
        return pid

    pid = bench.run(scenario())
    assert bench.answer(replace(SHORT, keep_alive_seconds=inf))["completion_tokens"] == 8
    assert bench.running and not is_running(pid)
    bench.generator.model = tiny
    assert bench.generator.idle_seconds_left == 0  # whatever its keep-alive time is
    bench.run(bench.generator.unload_if_idle())
    assert not bench.running


def test_a_request_that_is_cancelled_while_the_process_starts_leaves_it_usable(bench: Bench) -> None:
    bench.run(bench.generator.close())

    async def scenario() -> None:
        starting = asyncio.create_task(whole(bench.generator, SHORT))
        while bench.generator.pid is None:
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    bench.run(scenario())
    assert bench.answer(SHORT)["text"]


def test_a_request_begins_the_keep_alive_time_anew_and_work_is_not_idleness(bench: Bench) -> None:
    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            bench.clock.seconds += 10 * KEEP_ALIVE_SECONDS
            assert bench.generator.idle_seconds_left is None
            await bench.generator.unload_if_idle()
            await first_piece(events)
        assert bench.generator.idle_seconds_left == KEEP_ALIVE_SECONDS

    bench.run(scenario())


def test_closing_the_answer_early_cancels_it_and_the_next_request_is_answered(bench: Bench) -> None:
    expected = bench.answer(SHORT)["text"]
    pid = bench.generator.pid

    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)

    bench.run(scenario())
    assert bench.answer(SHORT)["text"] == expected
    assert bench.generator.pid == pid


def test_an_answer_that_nobody_waits_for_is_cancelled_and_the_next_one_is_given(bench: Bench) -> None:
    async def gone() -> bool:
        return True

    with pytest.raises(ClientGone):
        bench.run(bench.generator.ask(ENDLESS, is_gone=gone))
    assert bench.run(bench.generator.ask(SHORT))["text"] == bench.answer(SHORT)["text"]


def test_a_request_that_is_cancelled_while_it_waits_leaves_the_queue(bench: Bench) -> None:
    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            for _ in range(3):
                waiting = asyncio.create_task(whole(bench.generator, SHORT))
                await asyncio.sleep(0)  # lets it come to where it waits
                waiting.cancel()
                assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)

    bench.run(scenario())
    assert bench.answer(SHORT)["text"]


def test_a_request_that_nobody_waits_for_any_more_leaves_the_queue(bench: Bench) -> None:
    asked = SuggestionRequest(context="Wind", prefix="we", n=1, timeout_seconds=60)

    async def gone() -> bool:
        return True

    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            for _ in range(3):
                with pytest.raises(ClientGone):
                    await bench.generator.ask(asked, is_gone=gone)

    bench.run(scenario())
    assert bench.run(bench.generator.ask(asked))["replaces"] == len("we")


def test_requests_are_answered_one_by_one_and_one_too_many_is_refused(bench: Bench) -> None:
    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            waiting = asyncio.create_task(whole(bench.generator, SHORT))
            await asyncio.sleep(0)  # lets it come to where it waits
            with pytest.raises(GeneratorBusy, match="Too many requests"):
                await whole(bench.generator, SHORT)
            assert not waiting.done()
        assert (await waiting)["text"]

    bench.run(scenario())
    assert bench.answer(SHORT)["text"]


def test_when_the_process_dies_the_request_fails_and_the_next_one_is_answered(bench: Bench) -> None:
    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            pid = bench.generator.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(GeneratorFailed, match="process died"):
                async for _ in events:
                    pass
        assert bench.generator.pid is None

    bench.run(scenario())
    assert bench.answer(SHORT)["text"]


def test_a_process_that_died_while_it_was_idle_is_started_again(bench: Bench) -> None:
    bench.answer(SHORT)
    pid = bench.generator.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def noticed() -> None:
        while bench.generator.pid is not None:
            await asyncio.sleep(0)

    bench.run(noticed())
    assert bench.answer(SHORT)["text"]
    assert bench.generator.pid != pid


def test_closing_fails_the_answer_under_way_and_leaves_no_process(bench: Bench) -> None:
    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            pid = bench.generator.pid
            assert pid is not None
            await bench.generator.close()
            await bench.generator.close()
            assert bench.generator.pid is None and not is_running(pid)
            with pytest.raises(GeneratorFailed):
                async for _ in events:
                    pass

    bench.run(scenario())


def test_a_model_that_is_not_there_is_named_with_what_to_do(bench: Bench, models: Path) -> None:
    generator = Generator(
        models / "none",
        database=Path("none.db"),
        keep_alive_seconds=1,
        max_waiting=1,
        clock=bench.clock,
        socket=models / "llama.sock",
    )
    with pytest.raises(ModelNotReady, match=r"none\. Run `pocketllm models add`"):
        bench.run(whole(generator, SHORT))
    assert generator.pid is None


@pytest.mark.slow
def test_a_request_that_would_take_too_much_memory_fails_and_the_next_one_is_answered(models: Path) -> None:
    """The kernel holds the limit. What is left of the process's memory is full of holes, so there is a new one."""
    generator = Generator(
        models / "tiny",
        database=Path("none.db"),
        keep_alive_seconds=KEEP_ALIVE_SECONDS,
        max_waiting=1,
        clock=Clock(),
        socket=models / "small.sock",
        memory_bytes=1,  # it has what an answer of some words takes, however little this is
    )

    async def run() -> None:
        await whole(generator, SHORT)
        first = generator.pid
        huge = GenerationRequest(tokens=[5] * (CONTEXT - 8), max_tokens=4, alternatives=20, echo=True)
        # A library in Rust or C++ may end the process before anybody can say so.
        with pytest.raises((GenerationTooLarge, GeneratorFailed), match="lower max_tokens"):
            await whole(generator, huge)
        assert await whole(generator, SHORT)
        assert generator.pid not in (None, first)
        await generator.close()

    asyncio.run(asyncio.wait_for(run(), TIMEOUT_SECONDS))


@pytest.mark.slow
def test_each_length_of_a_text_takes_no_more_memory(bench: Bench) -> None:
    """oneDNN generates code for each, in bf16."""

    def grown(lengths: range) -> int:
        for length in lengths:
            request = SuggestionRequest(context="w" * length, prefix="", n=3, timeout_seconds=60)
            assert bench.run(suggestions(bench.generator, request))
        status = Path(f"/proc/{bench.generator.pid}/status").read_text()
        return int(re.findall(r"VmData:\s+(\d+) kB", status)[0]) * 1024

    first = grown(range(20, 100))
    assert grown(range(100, 180)) - first < 30 * 10**6
