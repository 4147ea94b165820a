"""Asking commands that answer, hang, crash, or are not there; and asking them in the background."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from pocketllm.daemon.child import run
from pocketllm.daemon.conditions.poller import RETRY_SECONDS, Asked, Background, Pace
from pocketllm.daemon.errors import ChildFailed
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.daemon.workers import NOW
from tests.support.executables import executable

SHORT = 0.3


def test_what_a_command_says(tmp_path: Path) -> None:
    scripts = {
        "echo hello; echo >&2 noise": "hello\n",
        "cat; echo done": "done\n",  # it gets no input
        "head -c 200000 /dev/zero | tr '\\0' x": "x" * 200_000,  # more than a pipe holds
    }
    for number, (script, said) in enumerate(scripts.items()):
        assert run([executable(tmp_path, f"says{number}", script)], timeout_seconds=20) == said


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


class Source:
    """Answers with a number that grows, when it is let; or fails. It is asked in the background."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False
        self.open = threading.Event()
        self.open.set()
        self.pace = Pace()
        self.background = Background(self, self.pace, idle_seconds=60, training_seconds=5)

    def __call__(self) -> int:
        self.open.wait(20)
        self.asked += 1
        if self.fails:
            raise ChildFailed("it is out")
        return self.asked

    def latest(self, seconds: float) -> Asked[int] | None:
        """The latest answer, so much later."""
        return self.background.latest(NOW + timedelta(seconds=seconds))

    def settle(self, asked: int) -> None:
        """Wait until it was asked so often."""
        eventually(lambda: self.asked >= asked and not self.background.busy, f"question {asked}", seconds=20)


@pytest.fixture
def source() -> Source:
    return Source()


def test_nobody_waits_for_a_slow_source(source: Source) -> None:
    source.open.clear()
    began = time.monotonic()
    assert source.latest(0) is None
    assert source.latest(300) is None, "one question at a time"
    assert time.monotonic() - began < 5
    source.open.set()
    source.settle(1)
    found = source.latest(0)
    assert found is not None and (found.answer, found.at, found.problem) == (1, NOW, None)
    assert source.asked == 1


def test_it_is_asked_again_when_it_is_time(source: Source) -> None:
    source.latest(0)
    source.settle(1)
    source.latest(59)
    assert source.asked == 1 and not source.background.busy
    source.latest(60)
    source.settle(2)
    source.pace.training = True
    source.latest(66)
    source.settle(3)
    source.latest(66 - 3600)  # the clock was set back
    source.settle(4)


def test_after_failures_it_is_left_alone_for_longer_and_longer(source: Source) -> None:
    source.fails = True
    at = 0.0
    for number, wait in enumerate((*RETRY_SECONDS, RETRY_SECONDS[-1]), 1):
        source.latest(at)
        source.settle(number)
        found = source.latest(at)
        assert found is not None and (found.answer, found.problem) == (None, "it is out")
        source.latest(at + wait - 1)
        assert not source.background.busy and source.asked == number
        at += wait
    source.fails = False
    source.latest(at)
    source.settle(6)
    found = source.latest(at)
    assert found is not None and found.answer == 6
    source.latest(at + 60)
    source.settle(7)


def test_its_thread_keeps_no_process_from_ending(source: Source) -> None:
    source.open.clear()
    source.latest(0)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "probe")
    source.open.set()
