"""The generator's process where llama.cpp is: what it decodes, what it leaves to torch, and what outlives it."""

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.errors import ModelNotReady
from pocketllm.daemon.generation.backend import Backend, BackendPreference
from pocketllm.daemon.generation.service import Done, GenerationRequest, Generator, SuggestionRequest
from pocketllm.engine.formats.importer import import_model
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.llama_double import LlamaDouble, counted, llama_double
from tests.support.models.tiny_models import byte_tokens

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 60.0
SHORT = GenerationRequest(prompt="Wind", max_tokens=8, temperature=0, seed=1)
#: What llama.cpp's double answers: it counts up from the last token.
ANSWER = "".join(byte_tokens()[token] for token in counted(byte_tokens().index("d"), 8))


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaDouble:
    """A llama-server on the path."""
    made = llama_double(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.path.parent}:{os.environ['PATH']}")
    return made


@contextmanager
def generator(
    models: Path, preference: BackendPreference = "auto", *, memory_bytes: int = 10**9
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
            memory_bytes=memory_bytes,
        )
        try:
            yield made, run
        finally:
            run(made.close())


async def whole(made: Generator, request: GenerationRequest | SuggestionRequest) -> dict[str, Any]:
    pieces: list[str] = []
    async for event in made.generate(request):
        if isinstance(event, Done):
            assert "".join(pieces) == event.summary.get("text", "")
            return event.summary
        pieces.append(event.text)
    raise AssertionError("the answer has no end")


@pytest.mark.smoke
def test_an_answer_comes_from_llama_cpp_and_torch_is_never_loaded(from_gguf: Path, double: LlamaDouble) -> None:
    with generator(from_gguf) as (made, run):
        assert made.backend == Backend(name="llamacpp")
        summary = run(whole(made, SHORT))
        assert summary["text"] == ANSWER
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
        assert said["text"] == f"Wind{ANSWER}"
        scored = run(whole(made, replace(SHORT, alternatives=1)))
        assert (scored["text"], scored["backend"]) == (ANSWER, "llamacpp")
        assert len(scored["scored"]) == scored["completion_tokens"]
        prompt = run(whole(made, replace(SHORT, echo=True, alternatives=1, max_tokens=0)))
        assert (prompt["text"], prompt["completion_tokens"]) == ("Wind", 0)
        assert [one["token"] for one in prompt["scored"]] == list("Wind")
        assert len(double.notes("request")) == 2


@pytest.mark.smoke
def test_torch_can_be_loaded_however_little_an_answer_may_take(from_gguf: Path, double: LlamaDouble) -> None:
    with generator(from_gguf, memory_bytes=1) as (made, run):
        assert run(whole(made, replace(SHORT, alternatives=1)))["backend"] == "llamacpp"
        asked = SuggestionRequest(context="Wind", prefix="", n=3, timeout_seconds=60)
        assert run(whole(made, asked))["complete"]


def test_llama_cpp_does_not_outlive_the_process(from_gguf: Path, double: LlamaDouble) -> None:
    with generator(from_gguf) as (made, run):
        run(whole(made, SHORT))
        assert made.pid is not None
        os.kill(made.pid, signal.SIGKILL)
        [pid] = double.pids
        eventually(lambda: not is_running(pid), "the server's end")

        async def noticed() -> None:
            while made.pid is not None:
                await asyncio.sleep(0)

        run(noticed())
        assert run(whole(made, SHORT))["backend"] == "llamacpp"


def test_the_setting_reaches_the_process(from_gguf: Path, tmp_path: Path, double: LlamaDouble) -> None:
    with generator(from_gguf, "transformers") as (made, run):
        assert run(whole(made, SHORT))["backend"] == "transformers"
        assert made.backend == Backend(name="transformers", reason="the setting backend is transformers")
    assert double.pids == []
    source = shutil.copy(from_gguf / "Tiny-Llama.Q8_0.gguf", tmp_path)
    import_model(str(source), tmp_path, name="tiny")
    Path(source).unlink()
    in_vain = r"The setting backend is llamacpp, but .*gguf, which tiny was imported from"
    with generator(tmp_path, "llamacpp") as (made, run), pytest.raises(ModelNotReady, match=in_vain):
        run(whole(made, SHORT))
    with generator(tmp_path) as (made, run):
        assert made.backend is not None and "cannot be read" in str(made.backend.reason)
        assert run(whole(made, SHORT))["backend"] == "transformers"
