"""The generator's process where llama.cpp is: what it decodes, what it leaves to torch, and what outlives it."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pocketllm.daemon.generation.backend import Backend
from pocketllm.daemon.generation.generator import GenerationRequest, SuggestionRequest
from tests.support.daemon.generators import generator_bench
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.llama_double import LlamaDouble, counted, llama_double
from tests.support.models.tiny_models import byte_tokens

pytestmark = pytest.mark.slow

SHORT = GenerationRequest(prompt="Wind", max_tokens=8, temperature=0, seed=1)
#: What llama.cpp's double answers: it counts up from the last token.
ANSWER = "".join(byte_tokens()[token] for token in counted(byte_tokens().index("d"), 8))
LLAMA_CPP = {"reason": None}


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaDouble:
    """A llama-server on the path."""
    made = llama_double(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.path.parent}:{os.environ['PATH']}")
    return made


@pytest.fixture
def data_dir(tmp_path: Path, from_gguf: Path) -> Path:
    """A data folder with the model `tiny`."""
    (tmp_path / "models").symlink_to(from_gguf)
    return tmp_path


@pytest.mark.smoke
def test_an_answer_comes_from_llama_cpp_and_torch_is_never_loaded(data_dir: Path, double: LlamaDouble) -> None:
    with generator_bench(data_dir) as bench:
        assert bench.generator.backend == Backend()
        summary = bench.answer(SHORT)
        assert (summary["text"], summary["finish_reason"], summary["completion_tokens"]) == (ANSWER, "length", 8)
        assert bench.generator.backend == Backend()
        libraries = Path(f"/proc/{bench.generator.pid}/maps").read_text()
        assert "tokenizers" in libraries and "libtorch" not in libraries
        stopped = bench.answer(replace(SHORT, stop=(ANSWER[3:5],)))
        assert (stopped["text"], stopped["finish_reason"]) == (ANSWER[:3], "stop")
        [pid] = double.pids
        assert is_running(pid)
    eventually(lambda: not is_running(pid), "the server's end")
    assert not (data_dir / "llama.sock").exists()


def test_scores_are_torchs_and_change_no_answer(data_dir: Path, double: LlamaDouble) -> None:
    with generator_bench(data_dir) as bench:
        assert bench.answer(replace(SHORT, echo=True))["text"] == f"Wind{ANSWER}"
        scored = bench.answer(replace(SHORT, alternatives=1))
        assert (scored["text"], scored["backend"]) == (ANSWER, LLAMA_CPP)
        assert len(scored["scored"]) == scored["completion_tokens"]
        prompt = bench.answer(replace(SHORT, echo=True, alternatives=1, max_tokens=0))
        assert (prompt["text"], prompt["completion_tokens"]) == ("Wind", 0)
        assert [one["token"] for one in prompt["scored"]] == list("Wind")
        assert len(double.notes("request")) == 2


@pytest.mark.smoke
def test_torch_can_be_loaded_however_little_an_answer_may_take(data_dir: Path, double: LlamaDouble) -> None:
    with generator_bench(data_dir, memory_bytes=1) as bench:
        assert bench.answer(replace(SHORT, alternatives=1))["backend"] == LLAMA_CPP
        assert bench.answer(SuggestionRequest(context="Wind", prefix="", n=3, timeout_seconds=60))["complete"]


def test_llama_cpp_does_not_outlive_the_process(data_dir: Path, double: LlamaDouble) -> None:
    with generator_bench(data_dir) as bench:
        bench.answer(SHORT)
        assert bench.generator.pid is not None
        os.kill(bench.generator.pid, signal.SIGKILL)
        [pid] = double.pids
        eventually(lambda: not is_running(pid), "the server's end")


def test_the_setting_reaches_the_process(data_dir: Path, double: LlamaDouble) -> None:
    with generator_bench(data_dir, backend="transformers") as bench:
        bench.answer(SHORT)
        assert bench.generator.backend == Backend("the setting backend is transformers")
    assert double.pids == []
