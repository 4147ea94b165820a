"""Asking commands that answer, hang, crash, or are not there; and asking them in the background."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from pocketllm.daemon.child import run
from pocketllm.daemon.conditions.poller import RETRY_SECONDS, Background, Pace
from pocketllm.daemon.errors import ChildFailed
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.daemon.workers import NOW
from tests.support.executables import executable

SHORT = 0.3


def test_what_a_command_says(tmp_path: Path) -> None:
    assert run([executable(tmp_path, "talks", "echo hello; echo >&2 noise")], timeout_seconds=9) == "hello\n"


def test_a_command_gets_no_input(tmp_path: Path) -> None:
    assert run([executable(tmp_path, "listens", "cat; echo done")], timeout_seconds=9) == "done\n"


def test_a_command_that_fails(tmp_path: Path) -> None:
    scripts = {
        "sleep 60": "did not answer within 0.3 s",
        "echo half an ans; sleep 60": "did not answer within 0.3 s",
        "exec >&-; sleep 60": "did not answer within 0.3 s",
        "sleep 60 & exit 0": "did not answer within 0.3 s",  # its child holds the pipe
        "echo why >&2; exit 3": "exited with code 3: why",
        "kill -9 $$": "was killed by signal 9",
    }
    for number, (script, problem) in enumerate(scripts.items()):
        command = executable(tmp_path, f"fails{number}", script)
        with pytest.raises(ChildFailed, match=problem):
            run([command], timeout_seconds=SHORT)
    with pytest.raises(ChildFailed, match="cannot be run: No such file"):
        run([str(tmp_path / "none")], timeout_seconds=9)


def test_nothing_of_a_hung_command_is_left(tmp_path: Path) -> None:
    """As termux-api leaves its child behind when it is killed."""
    note = tmp_path / "child"
    command = executable(tmp_path, "hangs", f"sleep 600 & echo $! > {note}; wait")
    with pytest.raises(ChildFailed):
        run([command], timeout_seconds=SHORT)
    child = int(note.read_text())
    eventually(lambda: not is_running(child), "the child's end", seconds=9)


def test_more_than_a_pipe_holds_is_read(tmp_path: Path) -> None:
    said = run([executable(tmp_path, "long", "head -c 200000 /dev/zero | tr '\\0' x")], timeout_seconds=20)
    assert len(said) == 200_000


class Source:
    """Answers with a number that grows, when it is let; or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False
        self.open = threading.Event()
        self.open.set()

    def __call__(self) -> int:
        self.open.wait(20)
        self.asked += 1
        if self.fails:
            raise ChildFailed("it is out")
        return self.asked


def later(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def pace() -> Pace:
    return Pace()


@pytest.fixture
def background(source: Source, pace: Pace) -> Background[int]:
    return Background(source, pace, idle_seconds=60, training_seconds=5)


def settle(background: Background[int], source: Source, asked: int) -> None:
    eventually(lambda: source.asked >= asked and not background.busy, f"question {asked}", seconds=20)


def test_nobody_waits_for_a_slow_source(background: Background[int], source: Source) -> None:
    source.open.clear()
    began = time.monotonic()
    assert background.latest(NOW) is None
    assert background.latest(NOW + later(300)) is None, "one question at a time"
    assert time.monotonic() - began < 5
    source.open.set()
    settle(background, source, 1)
    found = background.latest(NOW)
    assert found is not None and (found.answer, found.at, found.problem) == (1, NOW, None)
    assert source.asked == 1


def test_it_is_asked_again_when_it_is_time(background: Background[int], source: Source, pace: Pace) -> None:
    background.latest(NOW)
    settle(background, source, 1)
    background.latest(NOW + later(59))
    assert source.asked == 1 and not background.busy
    background.latest(NOW + later(60))
    settle(background, source, 2)
    pace.training = True
    background.latest(NOW + later(66))
    settle(background, source, 3)


def test_after_failures_it_is_left_alone_for_longer_and_longer(background: Background[int], source: Source) -> None:
    source.fails = True
    at = NOW
    for number, wait in enumerate((*RETRY_SECONDS, RETRY_SECONDS[-1]), 1):
        background.latest(at)
        settle(background, source, number)
        found = background.latest(at)
        assert found is not None and (found.answer, found.problem) == (None, "it is out")
        background.latest(at + later(wait - 1))
        assert not background.busy and source.asked == number
        at += later(wait)
    source.fails = False
    background.latest(at)
    settle(background, source, 6)
    found = background.latest(at)
    assert found is not None and found.answer == 6
    background.latest(at + later(60))
    settle(background, source, 7)


def test_a_clock_that_was_set_back_does_not_silence_it(background: Background[int], source: Source) -> None:
    background.latest(NOW)
    settle(background, source, 1)
    background.latest(NOW - later(3600))
    settle(background, source, 2)


def test_its_thread_keeps_no_process_from_ending(background: Background[int], source: Source) -> None:
    source.open.clear()
    background.latest(NOW)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "probe")
    source.open.set()
