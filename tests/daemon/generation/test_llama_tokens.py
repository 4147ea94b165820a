"""llama.cpp as the source of an answer's tokens: which server, which adapter, and what happens when it fails."""

import os
import shutil
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pocketllm.daemon.generation.backend import Backend
from pocketllm.daemon.generation.llama.server import ServerPlan, Timeouts
from pocketllm.daemon.generation.llama.tokens import LORA_NAME, LlamaDecoder
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.generate.streaming_text import Sampling
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.llama_double import BEFORE_THE_CRASH, LlamaDouble, Trouble, counted, llama_double
from tests.support.models.learning import some_adapter

PROMPT = [50, 60]
OTHER = 200  #: the token of the source that is asked where llama.cpp fails


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


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
    clock: Clock
    otherwise: Otherwise

    def tokens(self, adapter: Path | None = None, *, count: int = 5, prompt: Sequence[int] = PROMPT) -> list[int]:
        return list(self.decoder.tokens(adapter, lambda: self.otherwise, prompt, Sampling(max_tokens=count)))

    def have(self, trouble: Trouble) -> None:
        """Put another program in its place."""
        llama_double(self.double.path.parent, trouble)


@pytest.fixture
def bench(from_gguf: Path, tmp_path: Path) -> Iterator[Bench]:
    double, clock = llama_double(tmp_path / "bin"), Clock()
    shutil.copytree(from_gguf / "tiny", tmp_path / "tiny")
    model_folder = open_model_folder(tmp_path / "tiny")
    decoder = LlamaDecoder(
        model_folder,
        ServerPlan(program=str(double.path), base=from_gguf / "Tiny-Llama.Q8_0.gguf", threads=1, memory_bytes=10**9),
        address=tmp_path / "llama.sock",
        encode=lambda text: list(text.encode()),
        timeouts=Timeouts(start_seconds=30, token_seconds=0.3),
        clock=clock,
    )
    with closing(decoder):
        yield Bench(decoder, double, model_folder, clock, Otherwise())
    assert not any(map(is_running, double.pids))


def adapter(bench: Bench, name: str) -> Path:
    """Save an adapter of the model; its folder."""
    made = some_adapter(LanguageModel(bench.model_folder), targets=None)
    folder = bench.model_folder.path.parent / name
    made.save(folder)
    return folder


def options(arguments: list[str]) -> dict[str, str]:
    return dict(zip(arguments[::2], arguments[1::2], strict=False))


def test_one_server_answers_all_that_it_can(bench: Bench) -> None:
    assert bench.tokens() == bench.tokens() == counted(60, 5)
    assert len(bench.double.pids) == 1
    assert bench.decoder.backend == Backend(name="llamacpp")
    assert bench.otherwise.asked == []


def test_a_longer_answer_gets_a_server_with_more_room(bench: Bench) -> None:
    for count in (5, 2046, 2047, 5):
        bench.tokens(count=count)
    contexts = [options(arguments)["--ctx-size"] for arguments in bench.double.notes("arguments")]
    assert contexts == ["2048", "4096"]


def test_an_adapter_is_made_a_file_of_once_and_its_server_answers_for_the_base_too(bench: Bench) -> None:
    one, other = adapter(bench, "one"), adapter(bench, "other")
    assert bench.tokens(one) == counted(60, 5, step=-1)
    assert bench.tokens() == counted(60, 5)
    made = (one / LORA_NAME).stat()
    assert bench.tokens(other) == bench.tokens(one) == counted(60, 5, step=-1)
    assert (one / LORA_NAME).stat().st_mtime_ns == made.st_mtime_ns
    loras = [options(arguments).get("--lora") for arguments in bench.double.notes("arguments")]
    assert loras == [str(folder / LORA_NAME) for folder in (one, other, one)]


def test_what_is_no_adapter_for_llama_cpp_is_answered_otherwise_and_not_held_against_it(bench: Bench) -> None:
    assert bench.tokens(bench.model_folder.path) == [OTHER] * 5  # all its weights were trained
    assert bench.decoder.backend.name == "transformers" and bench.decoder.backend.reason
    assert bench.tokens() == counted(60, 5)
    assert bench.decoder.backend == Backend(name="llamacpp")


def test_where_it_breaks_off_the_text_goes_on(bench: Bench) -> None:
    bench.have("crashes")
    given = counted(60, BEFORE_THE_CRASH)
    assert bench.tokens(count=8) == [*given, *[OTHER] * 5]
    assert bench.otherwise.asked == [([*PROMPT, *given], 5)]
    assert bench.decoder.backend.name == "transformers"


def test_after_a_failure_it_is_left_alone_for_longer_and_longer(bench: Bench) -> None:
    bench.have("exits")
    for starts, seconds in enumerate((5, 10, 20), 1):
        for moment in (0.0, seconds - 0.1):
            bench.clock.seconds += moment
            assert bench.tokens() == [OTHER] * 5
            assert len(bench.double.pids) == starts
            assert "it is no model of mine" in str(bench.decoder.backend.reason)
        bench.clock.seconds += 0.2
    bench.have("none")
    assert bench.tokens() == counted(60, 5)
    assert bench.decoder.backend == Backend(name="llamacpp")
    bench.have("exits")
    bench.decoder.close()
    assert bench.tokens() == [OTHER] * 5
    bench.clock.seconds += 5.1  # it was well in between
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


def test_whoever_has_enough_is_no_failure(bench: Bench) -> None:
    with closing(bench.decoder.tokens(None, lambda: bench.otherwise, PROMPT, Sampling(max_tokens=10**6))) as tokens:
        assert next(tokens) == counted(60, 1)[0]
    assert bench.tokens() == counted(60, 5)
    assert bench.otherwise.asked == []
