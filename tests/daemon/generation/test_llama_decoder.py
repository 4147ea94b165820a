"""llama.cpp as the source of an answer's tokens: which server, which adapter, and what happens when it fails.

The server is a small real one, which is started as llama.cpp's own would be.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.generation.backend import Backend
from pocketllm.daemon.generation.llama import child as llama_child
from pocketllm.daemon.generation.llama.decoder import LORA_NAME, LlamaDecoder
from pocketllm.daemon.generation.llama.server import ServerPlan
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.generate.streaming_text import Sampling
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.daemon.generators import Seconds
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.llama_double import BEFORE_THE_CRASH, LlamaDouble, Trouble, counted, llama_double
from tests.support.models.learning import some_adapter

PROMPT = [50, 60]
OTHER = 200  #: the token of the source that is asked where llama.cpp fails


@dataclass
class Otherwise:
    """A source that notes what it is asked."""

    asked: list[tuple[list[int], int]] = field(default_factory=list)

    def __call__(self, prompt: Sequence[int], sampling: Sampling) -> Generator[int]:
        self.asked.append((list(prompt), sampling.max_tokens))
        yield from [OTHER] * sampling.max_tokens


@dataclass
class Bench:
    decoder: LlamaDecoder
    double: LlamaDouble
    model_folder: ModelFolder
    plan: ServerPlan
    clock: Seconds
    otherwise: Otherwise

    def tokens(self, adapter: Path | None = None, *, count: int = 5, **sampling: Any) -> list[int]:
        chosen = Sampling(max_tokens=count, **sampling)
        return list(self.decoder.tokens(adapter, lambda: self.otherwise, PROMPT, chosen))

    def have(self, trouble: Trouble) -> None:
        """Put another program in its place."""
        llama_double(self.double.path.parent, trouble)

    def options(self) -> list[dict[str, str]]:
        """Those that the servers were started with."""
        started = self.double.notes("arguments")
        return [dict(zip(arguments[::2], arguments[1::2], strict=False)) for arguments in started]


@pytest.fixture
def bench(from_gguf: Path, tmp_path: Path) -> Iterator[Bench]:
    double, clock = llama_double(tmp_path / "bin"), Seconds()
    shutil.copytree(from_gguf / "tiny", tmp_path / "tiny")
    model_folder = open_model_folder(tmp_path / "tiny")
    sockets = tmp_path / ("long" * 40)  # the kernel takes paths of 107 bytes
    sockets.mkdir(mode=0o700)
    plan = ServerPlan(
        program=str(double.path),
        base=from_gguf / "Tiny-Llama.Q8_0.gguf",
        socket=sockets / "llama.sock",
        encode=lambda text: list(text.encode()),
        threads=3,
        memory_bytes=10**9,
        start_seconds=30,
        token_seconds=0.3,
    )
    decoder = LlamaDecoder(model_folder, plan, clock)
    with closing(decoder):
        yield Bench(decoder, double, model_folder, plan, clock, Otherwise())
    decoder.close()
    assert not any(map(is_running, double.pids))
    assert not list(sockets.iterdir())


def adapter(bench: Bench, name: str) -> Path:
    """Save an adapter of the model; its folder."""
    made = some_adapter(LanguageModel(bench.model_folder), targets=None)
    folder = bench.model_folder.path.parent / name
    made.save(folder)
    return folder


def test_one_server_answers_all_that_it_can_and_nobody_else_reaches_it(bench: Bench) -> None:
    assert bench.tokens(temperature=0.5, top_p=0.9, seed=3) == bench.tokens(temperature=0) == counted(60, 5)
    assert bench.decoder.backend == Backend()
    assert bench.otherwise.asked == []
    assert [path.name for path in bench.plan.socket.parent.iterdir()] == ["llama.sock"]
    assert bench.plan.socket.is_socket()
    [options] = bench.options()
    assert options["--model"] == str(bench.plan.base) and options["--host"] == "llama.sock"
    assert (options["--ctx-size"], options["--threads"], options["--parallel"]) == ("2048", "3", "1")
    drawn, likeliest = bench.double.notes("request")
    assert (drawn["prompt"], drawn["n_predict"], drawn["seed"], drawn["lora"]) == (PROMPT, 5, 3, [])
    assert (drawn["samplers"], drawn["temperature"], drawn["top_p"]) == (["temperature", "top_p"], 0.5, 0.9)
    assert (likeliest["samplers"], likeliest["top_k"]) == (["top_k"], 1)


def test_a_longer_answer_gets_a_server_with_more_room(bench: Bench) -> None:
    for count in (5, 2046, 2047, 5):
        bench.tokens(count=count)
    assert [options["--ctx-size"] for options in bench.options()] == ["2048", "4096"]


def test_an_adapter_is_made_a_file_of_once_and_its_server_answers_for_the_base_too(bench: Bench) -> None:
    one, other = adapter(bench, "one"), adapter(bench, "other")
    assert bench.tokens(one) == counted(60, 5, step=-1)
    assert bench.tokens() == counted(60, 5)
    made = (one / LORA_NAME).stat()
    assert bench.tokens(other) == bench.tokens(one) == counted(60, 5, step=-1)
    assert (one / LORA_NAME).stat().st_mtime_ns == made.st_mtime_ns
    loras = [options.get("--lora") for options in bench.options()]
    assert loras == [str(folder / LORA_NAME) for folder in (one, other, one)]


def test_what_is_no_adapter_for_llama_cpp_is_answered_otherwise_and_not_held_against_it(bench: Bench) -> None:
    assert bench.tokens(bench.model_folder.path) == [OTHER] * 5  # all its weights were trained
    assert bench.decoder.backend.reason
    assert bench.tokens() == counted(60, 5)
    assert bench.decoder.backend == Backend()


def test_where_it_breaks_off_the_text_goes_on(bench: Bench) -> None:
    bench.have("crashes")
    given = counted(60, BEFORE_THE_CRASH)
    assert bench.tokens(count=8) == [*given, *[OTHER] * 5]
    assert bench.otherwise.asked == [([*PROMPT, *given], 5)]
    assert bench.decoder.backend.reason


@pytest.mark.parametrize(
    ("trouble", "complaint"),
    [
        ("loads", "was not ready within 0.5 s"),
        ("rubbish", "did not answer: Expecting"),
        ("refuses", "status 400"),
        ("foreign", "answered without tokens"),
        ("silent", "did not answer: timed out"),
        ("pings", "sends no more tokens"),
    ],
)
def test_one_that_gives_no_tokens(bench: Bench, trouble: Trouble, complaint: str) -> None:
    bench.have(trouble)
    plan = replace(bench.plan, start_seconds=0.5) if trouble == "loads" else bench.plan
    with closing(LlamaDecoder(bench.model_folder, plan)) as decoder:
        assert list(decoder.tokens(None, lambda: bench.otherwise, PROMPT, Sampling(max_tokens=1))) == [OTHER]
        assert complaint in str(decoder.backend.reason)


def test_after_a_failure_it_is_left_alone_for_longer_and_longer(bench: Bench) -> None:
    bench.have("exits")
    for starts, seconds in enumerate((5, 10, 20), 1):
        for moment in (0.0, seconds - 0.1):
            bench.clock.now += moment
            assert bench.tokens() == [OTHER] * 5
            assert len(bench.double.pids) == starts
            assert "exited at startup with code 1: it is no model of mine" in str(bench.decoder.backend.reason)
        bench.clock.now += 0.2
    bench.have("none")
    assert bench.tokens() == counted(60, 5)
    assert bench.decoder.backend == Backend()
    bench.have("exits")
    bench.decoder.close()
    assert bench.tokens() == [OTHER] * 5
    bench.clock.now += 5.1  # it was well in between
    bench.have("none")
    assert bench.tokens() == counted(60, 5)


def test_one_that_died_while_nobody_asked_is_started_again(bench: Bench) -> None:
    bench.tokens()
    [pid] = bench.double.pids
    os.kill(pid, signal.SIGKILL)
    # Until its last thread has gone it is none that can be buried.
    eventually(lambda: not is_running(pid) and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1, "its end")
    assert bench.tokens() == counted(60, 5)
    assert bench.otherwise.asked == []


def test_whoever_has_enough_stops_it_and_that_is_no_failure(bench: Bench) -> None:
    with closing(bench.decoder.tokens(None, lambda: bench.otherwise, PROMPT, Sampling(max_tokens=10**6))) as tokens:
        assert next(tokens) == counted(60, 1)[0]
    eventually(lambda: bench.double.notes("stopped_at"), "the end of the answer")
    assert bench.tokens() == counted(60, 5)
    assert bench.otherwise.asked == [] and len(bench.double.pids) == 1


def test_it_does_not_begin_without_its_parent(tmp_path: Path) -> None:
    double = llama_double(tmp_path / "bin")
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    command = [sys.executable, "-P", llama_child.__file__, str(nobody.pid), "1000000000", str(double.path)]
    assert subprocess.run(command).returncode == os.EX_UNAVAILABLE
    assert double.pids == []
