"""The generator with its real process and a tiny model: when it is there, and who is let in.

What it answers, and what its death does to an answer: tests/api/native/test_api_generate.py.
"""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from pocketllm.daemon.errors import ClientGone, GenerationTooLarge, GeneratorFailed, ModelNotReady
from pocketllm.daemon.generation.generator import GenerationRequest, SuggestionRequest
from pocketllm.daemon.generation.process import PIECE_SECONDS, merged
from pocketllm.engine.errors import BadRequest
from tests.support.daemon.generators import GeneratorBench, first_piece, generator_bench, whole
from tests.support.daemon.real_daemon import is_running
from tests.support.models.tiny_models import edit_json, tiny_model_folder

KEEP_ALIVE_SECONDS = 300.0
#: The model's context, in tokens.
CONTEXT = 32_768
#: Far more than a test waits for: if it were not broken off, the next request would not be answered in time.
ENDLESS = GenerationRequest(prompt="Wind", max_tokens=CONTEXT - 100, temperature=0, seed=1)
SHORT = GenerationRequest(prompt="Wind", max_tokens=8, temperature=1.0, seed=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the model `tiny`, whose context is wide enough for an endless answer."""
    folder = tmp_path_factory.mktemp("data")
    edit_json(tiny_model_folder(folder / "models") / "config.json", max_position_embeddings=CONTEXT)
    return folder


@pytest.fixture(scope="module")
def bench(data_dir: Path) -> Iterator[GeneratorBench]:
    """One generator for all tests of this module; each finds it usable, and leaves it so."""
    with generator_bench(data_dir, keep_alive_seconds=KEEP_ALIVE_SECONDS) as made:
        yield made


def test_pieces_of_a_moment_go_out_as_one() -> None:
    moments = iter([10.0, 10.01, 10.02, 10.02 + PIECE_SECONDS, 10.03 + PIECE_SECONDS])
    assert list(merged(iter("abcde"), clock=lambda: next(moments))) == ["a", "bcd", "e"]
    assert list(merged(iter(()))) == []


def test_an_adapter_that_is_gone_is_refused_and_the_process_survives(bench: GeneratorBench, tmp_path: Path) -> None:
    bench.answer(SHORT)
    pid = bench.generator.pid
    with pytest.raises(BadRequest, match="none cannot be read"):
        bench.answer(replace(SHORT, adapter=tmp_path / "none"))
    bench.answer(SHORT)
    assert bench.generator.pid == pid


def test_it_is_unloaded_when_it_has_been_idle_for_as_long_as_the_last_request_said(bench: GeneratorBench) -> None:
    bench.run(bench.generator.close())
    assert (bench.generator.pid, bench.generator.idle_seconds_left) == (None, None)
    bench.answer(replace(SHORT, keep_alive_seconds=inf))
    pid = bench.generator.pid
    assert pid is not None
    bench.clock.now += 10**9
    assert (bench.running, bench.generator.idle_seconds_left) == (True, None)
    bench.run(bench.generator.unload_if_idle())
    bench.answer(replace(SHORT, keep_alive_seconds=0))
    assert (bench.generator.pid, bench.generator.idle_seconds_left) == (pid, 0)
    bench.answer(SHORT)  # says nothing: the time of the settings
    bench.clock.now += KEEP_ALIVE_SECONDS - 1
    assert bench.generator.idle_seconds_left == pytest.approx(1)
    bench.run(bench.generator.unload_if_idle())
    assert bench.running and bench.generator.pid == pid
    bench.clock.now += 1
    bench.run(bench.generator.unload_if_idle())
    assert not is_running(pid)


def test_it_is_unloaded_sooner_where_somebody_waits_for_its_memory(bench: GeneratorBench) -> None:
    bench.answer(replace(SHORT, keep_alive_seconds=inf))
    bench.generator.max_keep_alive = 20.0
    assert not bench.run(bench.generator.unload_if_idle())
    bench.clock.now += 20
    assert bench.run(bench.generator.unload_if_idle()) and not bench.running
    bench.generator.max_keep_alive = inf


def test_unloading_leaves_the_socket_of_the_next_process(bench: GeneratorBench, data_dir: Path) -> None:
    socket = data_dir / "llama.sock"
    bench.answer(replace(SHORT, keep_alive_seconds=0))

    async def scenario() -> None:
        bench.generator.before_start = lambda: socket.touch()  # as the next process's llama.cpp makes it
        unloading = asyncio.create_task(bench.generator.unload_if_idle())
        await asyncio.sleep(0)
        await asyncio.gather(unloading, whole(bench.generator, SHORT))

    bench.run(scenario())
    bench.generator.before_start = lambda: None
    assert bench.running and socket.exists()


def test_another_model_answers_next_and_not_what_was_asked_of_the_former(bench: GeneratorBench, data_dir: Path) -> None:
    tiny, other = bench.generator.model, tiny_model_folder(data_dir / "models", name="other")

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


def test_a_request_that_is_cancelled_while_the_process_starts_leaves_it_usable(bench: GeneratorBench) -> None:
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


def test_a_request_begins_the_keep_alive_time_anew_and_work_is_not_idleness(bench: GeneratorBench) -> None:
    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            bench.clock.now += 10 * KEEP_ALIVE_SECONDS
            assert bench.generator.idle_seconds_left is None
            await bench.generator.unload_if_idle()
            await first_piece(events)
        assert bench.generator.idle_seconds_left == KEEP_ALIVE_SECONDS

    bench.run(scenario())


def test_requests_that_nobody_waits_for_any_more_leave_the_queue_and_the_process(bench: GeneratorBench) -> None:
    asked = SuggestionRequest(context="Wind", prefix="we", n=1, timeout_seconds=60)

    async def gone() -> bool:
        return True

    async def scenario() -> None:
        async with aclosing(bench.generator.generate(ENDLESS)) as events:
            await first_piece(events)
            for _ in range(3):  # more than may wait
                with pytest.raises(ClientGone):
                    await bench.generator.ask(asked, is_gone=gone)
        with pytest.raises(ClientGone):
            await bench.generator.ask(ENDLESS, is_gone=gone)

    bench.run(scenario())
    pid = bench.generator.pid
    assert bench.answer(asked)["replaces"] == len("we")
    assert bench.generator.pid == pid


def test_a_process_that_died_while_it_was_idle_is_started_again(bench: GeneratorBench) -> None:
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


def test_a_model_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with generator_bench(tmp_path) as bench:
        with pytest.raises(ModelNotReady, match=r"tiny\. Run `pocketllm models add`"):
            bench.answer(SHORT)
        assert bench.generator.pid is None


@pytest.mark.slow
def test_a_request_that_would_take_too_much_memory_fails_and_the_next_one_is_answered(data_dir: Path) -> None:
    """The kernel holds the limit. What is left of the process's memory is full of holes, so there is a new one."""
    # It has what an answer of some words takes, however little memory is given.
    with generator_bench(data_dir, memory_bytes=1) as bench:
        bench.answer(SHORT)
        first = bench.generator.pid
        huge = GenerationRequest(tokens=[5] * (CONTEXT - 8), max_tokens=4, alternatives=20, echo=True)
        # A library in Rust or C++ may end the process before anybody can say so.
        with pytest.raises((GenerationTooLarge, GeneratorFailed), match="lower max_tokens"):
            bench.answer(huge)
        assert bench.answer(SHORT)
        assert bench.generator.pid not in (None, first)


@pytest.mark.slow
def test_each_length_of_a_text_takes_no_more_memory(bench: GeneratorBench) -> None:
    """oneDNN generates code for each, in bf16."""

    def grown(lengths: range) -> int:
        for length in lengths:
            assert bench.answer(SuggestionRequest(context="w" * length, prefix="", n=3, timeout_seconds=60))[
                "suggestions"
            ]
        status = Path(f"/proc/{bench.generator.pid}/status").read_text()
        return int(re.findall(r"VmData:\s+(\d+) kB", status)[0]) * 1024

    first = grown(range(20, 100))
    assert grown(range(100, 180)) - first < 30 * 10**6
