"""The generator's process where llama.cpp is: what it decodes, what it leaves to torch, and what outlives it."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.errors import ModelNotReady
from pocketllm.daemon.generation.backend import Backend, BackendPreference
from pocketllm.daemon.generation.service import Done, GenerationRequest, Generator, Piece
from pocketllm.engine.formats.importer import import_model
from tests.support.llama_double import BEFORE_THE_CRASH, LlamaDouble, counted, llama_double
from tests.support.real_daemon import eventually, is_running
from tests.support.tiny_models import byte_tokens

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 60.0
SHORT = GenerationRequest(prompt="Wind", max_tokens=8, temperature=0, seed=1)
ENDLESS = replace(SHORT, max_tokens=200)


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaDouble:
    """A llama-server on the path."""
    made = llama_double(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.path.parent}:{os.environ['PATH']}")
    return made


@contextmanager
def generator(
    models: Path, preference: BackendPreference = "auto"
) -> Iterator[tuple[Generator, Callable[[Awaitable[Any]], Any]]]:
    with asyncio.Runner() as runner:

        def run(awaitable: Awaitable[Any]) -> Any:
            async def bounded() -> Any:
                return await asyncio.wait_for(awaitable, TIMEOUT_SECONDS)

            return runner.run(bounded())

        made = Generator(
            models / "tiny",
            database=models / "none.db",
            keep_alive_seconds=300,
            max_waiting=1,
            clock=lambda: 0.0,
            socket=models / "llama.sock",
            preference=preference,
        )
        try:
            yield made, run
        finally:
            run(made.close())


async def whole(made: Generator, request: GenerationRequest) -> dict[str, Any]:
    pieces: list[str] = []
    async for event in made.generate(request):
        if isinstance(event, Done):
            assert "".join(pieces) == event.summary["text"]
            return event.summary
        pieces.append(event.text)
    raise AssertionError("the answer has no end")


def text(tokens: list[int]) -> str:
    return "".join(byte_tokens()[token] for token in tokens)


#: Of the prompt "Wind".
LAST_TOKEN = byte_tokens().index("d")


@pytest.mark.smoke
def test_an_answer_comes_from_llama_cpp_and_torch_is_never_loaded(from_gguf: Path, double: LlamaDouble) -> None:
    with generator(from_gguf) as (made, run):
        assert made.backend == Backend(name="llamacpp")
        summary = run(whole(made, SHORT))
        assert summary["text"] == text(counted(LAST_TOKEN, 8))
        assert (summary["backend"], summary["finish_reason"], summary["completion_tokens"]) == ("llamacpp", "length", 8)
        assert made.backend == Backend(name="llamacpp")
        libraries = Path(f"/proc/{made.pid}/maps").read_text()
        assert "tokenizers" in libraries and "libtorch" not in libraries
        stopped = run(whole(made, replace(SHORT, stop=(summary["text"][3:5],))))
        assert (stopped["text"], stopped["finish_reason"]) == (summary["text"][:3], "stop")
        [pid] = double.pids
        assert is_running(pid)
    eventually(lambda: not is_running(pid), "the server's end")
    assert not (from_gguf / "llama.sock").exists()


def test_scores_are_torchs_and_change_no_answer(from_gguf: Path, double: LlamaDouble) -> None:
    with generator(from_gguf) as (made, run):
        said = run(whole(made, replace(SHORT, echo=True)))
        assert said["text"] == "Wind" + text(counted(LAST_TOKEN, 8))
        scored = run(whole(made, replace(SHORT, alternatives=1)))
        assert "Wind" + scored["text"] == said["text"] and scored["backend"] == "llamacpp"
        assert len(scored["scored"]) == scored["completion_tokens"]
        compared: list[Any] = []

        async def compare() -> None:
            async for event in made.generate(replace(SHORT, compare=True)):
                compared.append(event)

        run(compare())
        assert compared[-1].summary["personal"]["text"] == compared[-1].summary["base"]["text"] == scored["text"]
        assert len(double.notes("wish")) == 4


def test_a_crash_in_the_middle_is_not_seen_in_the_answer(from_gguf: Path, double: LlamaDouble) -> None:
    llama_double(double.path.parent, "crashes")
    with generator(from_gguf) as (made, run):
        summary = run(whole(made, SHORT))
        assert summary["text"].startswith(text(counted(LAST_TOKEN, BEFORE_THE_CRASH)))
        assert summary["completion_tokens"] == 8 or summary["finish_reason"] == "stop"
        assert summary["backend"] == "transformers"
        assert made.backend is not None and "llama.cpp" in str(made.backend.reason)


def test_cancelling_reaches_llama_cpp_and_the_next_is_answered(from_gguf: Path, double: LlamaDouble) -> None:
    async def broken_off(events: AsyncGenerator[Piece | Done]) -> None:
        async with aclosing(events):
            assert isinstance(await anext(events), Piece)

    with generator(from_gguf) as (made, run):
        run(broken_off(made.generate(ENDLESS)))
        assert run(whole(made, SHORT))["text"] == text(counted(LAST_TOKEN, 8))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_llama_cpp_does_not_outlive_the_process(from_gguf: Path, double: LlamaDouble, number: signal.Signals) -> None:
    with generator(from_gguf) as (made, run):
        run(whole(made, SHORT))
        assert made.pid is not None
        os.kill(made.pid, number)
        [pid] = double.pids
        eventually(lambda: not is_running(pid), "the server's end")

        async def noticed() -> None:
            while made.pid is not None:
                await asyncio.sleep(0)

        run(noticed())
        assert run(whole(made, SHORT))["backend"] == "llamacpp"


def test_transformers_may_be_wished_for(from_gguf: Path, double: LlamaDouble) -> None:
    with generator(from_gguf, "transformers") as (made, run):
        assert run(whole(made, SHORT))["backend"] == "transformers"
        assert made.backend == Backend(name="transformers", reason="the setting backend is transformers")
    assert double.pids == []


def test_llama_cpp_wished_for_in_vain_says_why(from_gguf: Path, tmp_path: Path, double: LlamaDouble) -> None:
    shutil.copytree(from_gguf / "tiny", tmp_path / "tiny")
    other = tmp_path / "elsewhere"
    other.mkdir()
    import_model(str(shutil.copy(from_gguf / "Tiny-Llama.Q8_0.gguf", other)), tmp_path, name="tiny", replace=True)
    (other / "Tiny-Llama.Q8_0.gguf").unlink()
    with (
        generator(tmp_path, "llamacpp") as (made, run),
        pytest.raises(
            ModelNotReady, match=r"The setting backend is llamacpp, but .*gguf, which tiny was imported from"
        ),
    ):
        run(whole(made, SHORT))
    with generator(tmp_path) as (made, run):
        assert made.backend is not None and "cannot be read" in str(made.backend.reason)
        assert run(whole(made, SHORT))["backend"] == "transformers"
