"""Processes that do nothing are found by their CPU time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pocketllm.daemon.processes import LONGEST_GAP_SECONDS, StallWatch, cpu_seconds, session_cpu_seconds, session_pids
from tests.support.daemon.real_daemon import eventually

BUSY = "while True: pass"
BUSY_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


@pytest.fixture(params=[BUSY, BUSY_CHILD], ids=["itself", "its child"])
def busy(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """The leader of a session in which somebody computes."""
    process = subprocess.Popen([sys.executable, "-c", request.param], start_new_session=True)
    try:
        yield process
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()


def test_the_seconds_that_a_session_has_computed(busy: subprocess.Popen[bytes]) -> None:
    before = session_cpu_seconds(busy.pid)
    assert before is not None
    eventually(lambda: (session_cpu_seconds(busy.pid) or 0) > before + 0.2, "progress", seconds=60)


def test_a_process_that_is_gone_has_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    assert cpu_seconds(process.pid) is session_cpu_seconds(process.pid) is None


def test_idle_time_adds_up_until_there_is_progress() -> None:
    times = iter([0, 2, 4, 6, 8, 10, 12, 14, 16, 16 + 9 * 3600])
    watch = StallWatch(lambda: next(times))
    found = [watch.idle_seconds(cpu) for cpu in (1.0, 1.0, 1.0, 1.5, 1.5, None, None)]
    assert found == [0, 2, 4, 0, 2, 0, 0]
    watch.idle_seconds(1.5)
    assert watch.idle_seconds(1.5) == LONGEST_GAP_SECONDS, "whoever looks was stopped, too"


def test_a_session_has_its_leader_and_what_that_has_started() -> None:
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        eventually(lambda: len(session_pids(leader.pid)) == 2, "the child")
        assert leader.pid in session_pids(leader.pid)
    finally:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()
