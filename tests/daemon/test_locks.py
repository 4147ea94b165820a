"""A lock on a file, between real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pocketllm.daemon.locks import locked

#: Says whether it has the lock, and keeps it until its input ends.
HOLDS = """
import sys
from pathlib import Path
from pocketllm.daemon.locks import locked
print("begun", flush=True)
with locked(Path(sys.argv[1]), wait_seconds=float(sys.argv[2])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


@contextmanager
def other(path: Path, *, wait_seconds: float = 0) -> Iterator[subprocess.Popen[str]]:
    """Another process that asks for the lock, and has begun."""
    command = [sys.executable, "-c", HOLDS, str(path), str(wait_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert said(process) == "begun"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_only_one_process_has_it(path: Path) -> None:
    with locked(path) as ours, other(path) as theirs:
        assert (ours, said(theirs)) == (True, "False")
    with other(path) as theirs:
        assert said(theirs) == "True"
        with locked(path) as ours:
            assert not ours


def test_a_killed_process_gives_it_back(path: Path) -> None:
    with other(path) as theirs:
        assert said(theirs) == "True"
        os.kill(theirs.pid, signal.SIGKILL)
        theirs.wait()
        with locked(path) as held:
            assert held


def test_who_waits_has_it_when_its_holder_goes(path: Path) -> None:
    with other(path, wait_seconds=60) as first, other(path, wait_seconds=60) as second:
        assert said(first) == "True"
        first.kill()
        assert said(second) == "True"


def test_children_do_not_inherit_it(path: Path) -> None:
    command = [sys.executable, "-c", "print('begun', flush=True); input()"]
    with locked(path):
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
            close_fds=False,
        )
        assert said(child) == "begun"
    with child, locked(path) as held:
        assert held


def test_its_file_is_the_owners_alone(path: Path) -> None:
    with locked(path):
        assert path.stat().st_mode & 0o777 == 0o600
