"""The client of llama.cpp's server, with a small real server that is started as its own would be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pocketllm.daemon.generation.llama import child as llama_child
from pocketllm.daemon.generation.llama.server import LlamaFailed, LlamaServer, ServerPlan, Timeouts
from pocketllm.engine.generate.streaming_text import Sampling
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.llama_double import BEFORE_THE_CRASH, LlamaDouble, Trouble, counted, llama_double

PROMPT = [50, 60]
QUICK = Timeouts(start_seconds=30, token_seconds=0.3)


def plan(double: LlamaDouble, lora: Path | None = None) -> ServerPlan:
    return ServerPlan(
        program=str(double.path), base=Path("/base.gguf"), lora=lora, context=512, threads=3, memory_bytes=10**9
    )


def no_text(text: str) -> list[int]:
    raise AssertionError(text)


@contextmanager
def started(double: LlamaDouble, folder: Path, lora: Path | None = None) -> Iterator[LlamaServer]:
    with LlamaServer(plan(double, lora), folder / "llama.sock", no_text, QUICK) as server:
        yield server


def answer(server: LlamaServer, sampling: Sampling, *, personal: bool = False) -> list[int]:
    return list(server.tokens(PROMPT, sampling, personal=personal))


def test_it_is_asked_for_tokens_by_their_ids(tmp_path: Path) -> None:
    double = llama_double(tmp_path / "bin")
    with started(double, tmp_path) as server:
        assert answer(server, Sampling(max_tokens=7, temperature=0.5, top_p=0.9, seed=3)) == counted(60, 7)
    [body] = double.notes("request")
    assert (body["prompt"], body["n_predict"], body["seed"], body["lora"]) == (PROMPT, 7, 3, [])
    assert (body["samplers"], body["temperature"], body["top_p"]) == (["temperature", "top_p"], 0.5, 0.9)


def test_no_temperature_is_the_likeliest_token(tmp_path: Path) -> None:
    double = llama_double(tmp_path / "bin")
    with started(double, tmp_path) as server:
        answer(server, Sampling(max_tokens=1, temperature=0))
    [body] = double.notes("request")
    assert (body["samplers"], body["top_k"]) == (["top_k"], 1)


def test_its_arguments(tmp_path: Path) -> None:
    double = llama_double(tmp_path / "bin")
    with started(double, tmp_path, lora=tmp_path / "a.gguf"):
        pass
    [arguments] = double.notes("arguments")
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    assert options["--model"] == "/base.gguf" and options["--lora"] == str(tmp_path / "a.gguf")
    assert (options["--ctx-size"], options["--threads"], options["--parallel"]) == ("512", "3", "1")
    assert arguments[-1] == "--no-warmup"


def test_the_adapter_is_in_what_asks_for_it(tmp_path: Path) -> None:
    double = llama_double(tmp_path / "bin")
    with started(double, tmp_path, lora=tmp_path / "a.gguf") as server:
        assert answer(server, Sampling(max_tokens=4)) == counted(60, 4)
        assert answer(server, Sampling(max_tokens=4), personal=True) == counted(60, 4, step=-1)


def test_whoever_has_enough_stops_it(tmp_path: Path) -> None:
    double = llama_double(tmp_path / "bin")
    with started(double, tmp_path) as server:
        with closing(server.tokens(PROMPT, Sampling(max_tokens=10**6))) as tokens:
            assert next(tokens) == counted(60, 1)[0]
        eventually(lambda: double.notes("stopped_at"), "the end of the answer")
        assert server.alive


def test_it_is_reached_by_nobody_else_and_leaves_nothing(tmp_path: Path) -> None:
    """Where sockets have long paths, too: the kernel takes 107 bytes."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir(mode=0o700)
    with started(llama_double(tmp_path / "bin"), folder) as server:
        assert [path.name for path in folder.iterdir()] == ["llama.sock"]
        assert (folder / "llama.sock").is_socket()
        pid = server.pid
    assert not is_running(pid) and not list(folder.iterdir())
    server.close()


def test_one_that_does_not_start(tmp_path: Path) -> None:
    troubles: list[tuple[Trouble, str, float]] = [
        ("exits", "exited at startup with code 1: it is no model of mine", 30),
        ("hangs", "was not ready within 0.5 s", 0.5),
        ("loads", "was not ready within 0.5 s", 0.5),
    ]
    for trouble, complaint, seconds in troubles:
        double = llama_double(tmp_path / trouble, trouble)
        with pytest.raises(LlamaFailed, match=complaint):
            LlamaServer(plan(double), tmp_path / "llama.sock", no_text, Timeouts(start_seconds=seconds))
        assert not any(map(is_running, double.pids))


def test_one_that_gives_no_tokens(tmp_path: Path) -> None:
    troubles: list[tuple[Trouble, str]] = [
        ("rubbish", "did not answer: Expecting"),
        ("refuses", "status 400"),
        ("foreign", "answered without tokens"),
        ("silent", "did not answer: timed out"),
        ("pings", "sends no more tokens"),
    ]
    for trouble, complaint in troubles:
        with (
            started(llama_double(tmp_path / trouble, trouble), tmp_path) as server,
            pytest.raises(LlamaFailed, match=complaint),
        ):
            answer(server, Sampling(max_tokens=5))


def test_one_that_dies_has_given_what_it_gave(tmp_path: Path) -> None:
    given: list[int] = []
    with started(llama_double(tmp_path / "bin", "crashes"), tmp_path) as server:
        with pytest.raises(LlamaFailed):
            for token in server.tokens(PROMPT, Sampling(max_tokens=9)):
                given.append(token)
        eventually(lambda: not server.alive, "its end")
        with pytest.raises(LlamaFailed, match="did not answer"):
            answer(server, Sampling(max_tokens=9))
    assert given == counted(60, BEFORE_THE_CRASH)


def test_it_does_not_begin_without_its_parent(tmp_path: Path) -> None:
    double = llama_double(tmp_path / "bin")
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    command = [sys.executable, "-P", llama_child.__file__, str(nobody.pid), "1000000000", str(double.path)]
    assert subprocess.run(command).returncode == os.EX_UNAVAILABLE
    assert double.pids == []
