"""The runner with real worker processes."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.scheduling.worker_process import Exit, WorkerProcess
from pocketllm.storage.store import Store
from tests.support.daemon.real_daemon import is_running
from tests.support.faults import no_room

#: There is no such job: its worker fails as soon as it has looked.
NO_JOB = "job-none"


@pytest.fixture
def runner(folder: DataFolder) -> Iterator[WorkerProcess]:
    Store.open(folder.database).close()
    runner = WorkerProcess(folder)
    yield runner
    runner.kill()


def start(runner: WorkerProcess, job_id: str = NO_JOB, *, immediate: bool = False) -> int:
    """Start a worker; its process id."""
    runner.start(job_id, 1, seconds=3600.0, immediate=immediate)
    assert runner.pid is not None
    return runner.pid


def wait_for_end(pid: int) -> None:
    """Wait for a child to end, and leave it for its runner to reap."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def priority(pid: int) -> tuple[int, int]:
    """How it is scheduled, and how nice it is: the least that there is, unless somebody waits for it."""
    return os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)


def idle(runner: WorkerProcess) -> bool:
    return (runner.pid, runner.job_id, runner.reap()) == (None, None, None)


def test_it_has_a_session_of_its_own_and_is_gone_when_it_is_killed(runner: WorkerProcess) -> None:
    pid = start(runner)
    assert (runner.job_id, runner.reap()) == (NO_JOB, None)
    assert is_running(pid) and os.getsid(pid) == pid
    runner.kill()
    assert idle(runner) and not Path(f"/proc/{pid}").exists()
    runner.kill()
    assert idle(runner)


def test_a_worker_that_fails_is_reaped_once_with_its_last_words(runner: WorkerProcess, folder: DataFolder) -> None:
    job_id = "job-" + "x" * 500
    wait_for_end(pid := start(runner, job_id))
    assert priority(pid) == (os.SCHED_IDLE, 19)
    ended = runner.reap()
    assert ended is not None and ended.job_id == job_id
    assert ended.code > 0
    assert "There is no job 'job-xxx" in ended.last_words
    assert len(ended.last_words) == 300  # a job's error is a line, not a log
    assert idle(runner)
    assert folder.worker_log.read_text().rstrip().splitlines()[-1].startswith(ended.last_words)


def test_a_worker_that_something_else_killed_is_reaped_with_the_signal(
    runner: WorkerProcess, folder: DataFolder
) -> None:
    folder.worker_log.write_text("of the one before\n" * 1000)
    pid = start(runner)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    ended = runner.kill()  # which finds that it has ended
    assert ended is not None and ended.cpu_seconds is not None and 0 <= ended.cpu_seconds < 60
    assert replace(ended, cpu_seconds=None) == Exit(job_id=NO_JOB, code=-signal.SIGKILL, last_words="")
    assert idle(runner)
    assert "of the one before" not in folder.worker_log.read_text()


def test_a_worker_that_cannot_be_started_leaves_the_runner_free(tmp_path: Path) -> None:
    runner = WorkerProcess(DataFolder(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError):
        runner.start(NO_JOB, 1, seconds=3600.0)
    assert idle(runner)


def test_an_exit_is_described_in_a_sentence() -> None:
    descriptions = {
        (-9, "Segmentation fault"): "the worker was killed by signal 9",
        (1, "MemoryError"): "the worker exited with code 1: MemoryError",
        (75, "another worker is using this data folder"): "another worker is using this data folder",
        (75, ""): "the disk is too full for the worker's log",
        (0, ""): "the worker exited with code 0: no output",
    }
    for (code, last_words), description in descriptions.items():
        assert Exit(job_id=NO_JOB, code=code, last_words=last_words).description == description


def test_a_worker_that_cannot_write_why_it_ended_is_no_crash(runner: WorkerProcess) -> None:
    with no_room():
        wait_for_end(pid := start(runner, immediate=True))
    assert priority(pid) == (os.SCHED_OTHER, 10)
    ended = runner.reap()
    assert ended is not None and ended.code == os.EX_TEMPFAIL
    assert "the disk is too full for the worker's log" in ended.description
