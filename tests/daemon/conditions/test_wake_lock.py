"""The wake lock, with commands that note when they are called."""

import logging
from pathlib import Path

import pytest

from pocketllm.daemon.conditions.wake_lock import WakeLock
from tests.support.daemon.real_daemon import eventually, is_running
from tests.support.executables import executable


def lock_in(folder: Path) -> WakeLock:
    note = folder / "calls"
    return WakeLock(
        executable(folder, "take", f"echo take >> {note}"), executable(folder, "give", f"echo give >> {note}")
    )


def calls(folder: Path) -> list[str]:
    note = folder / "calls"
    return note.read_text().split() if note.exists() else []


@pytest.mark.parametrize(
    ("actions", "commands"),
    [
        ("take take release release take release", "take give take give"),
        ("take release release take", "take give give take"),  # what was not taken is no debt
        ("release take", "give take"),  # what a killed daemon has taken, its successor gives back: see `_serve`
    ],
)
def test_the_first_takes_it_and_the_last_gives_it_back(tmp_path: Path, actions: str, commands: str) -> None:
    lock = lock_in(tmp_path)
    for action in actions.split():
        getattr(lock, action)()
    lock.settle(20)
    assert calls(tmp_path) == commands.split()
    assert lock.in_use is actions.endswith("take")


def test_at_the_end_it_is_given_back_whoever_has_it(tmp_path: Path) -> None:
    lock = lock_in(tmp_path)
    lock.take()
    lock.take()
    lock.close()
    assert calls(tmp_path) == ["take", "give"] and not lock.in_use


def test_commands_that_fail_or_are_not_there_disturb_nobody(tmp_path: Path) -> None:
    broken, none = executable(tmp_path, "broken", "exit 1"), str(tmp_path / "none")
    for lock in (WakeLock(), WakeLock(broken, none, broken), WakeLock(None, None, none)):
        lock.take()
        lock.release()
        lock.settle(20)
        assert not lock.in_use


def test_the_inhibitor_runs_from_the_first_user_to_the_last(tmp_path: Path) -> None:
    note = tmp_path / "inhibitor"
    lock = WakeLock(inhibit=executable(tmp_path, "inhibit", f'echo "$$ $*" > {note}.new; mv {note}.new {note}; cat'))
    lock.take()
    lock.take()
    eventually(note.exists, "the inhibitor")
    pid, *arguments = note.read_text().split()
    assert arguments[:3] == ["--what=sleep", "--mode=block", "--who=PocketLLM"] and arguments[-1] == "cat"
    lock.release()
    assert lock.in_use and is_running(int(pid))
    lock.release()
    assert not is_running(int(pid))


def test_an_inhibitor_that_is_refused_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note = tmp_path / "inhibitor"
    lock = WakeLock(inhibit=executable(tmp_path, "inhibit", f"echo $$ > {note}.new; mv {note}.new {note}; exit 1"))
    lock.take()
    eventually(note.exists, "the inhibitor")
    eventually(lambda: not is_running(int(note.read_text())), "its end")
    caplog.set_level(logging.INFO)
    lock.release()
    assert "exited with code 1: the machine could go to sleep" in caplog.text
