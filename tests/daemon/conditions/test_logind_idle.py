"""Idleness of a Linux seat: logind's hint as busctl prints it, and the terminals."""

import os
from datetime import UTC, datetime
from math import inf
from pathlib import Path

import pytest

from pocketllm.daemon.conditions.logind_idle import LogindIdleness, idle_since
from pocketllm.daemon.conditions.poller import Pace
from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.errors import ChildFailed
from tests.support.daemon.gate_world import answered
from tests.support.daemon.workers import NOW
from tests.support.executables import answering, executable

HOUR = 3600


def hint(idle: bool, since: datetime) -> str:
    return f"b {str(idle).lower()}\nt {int(since.timestamp() * 1e6)}\n"


def ago(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW.timestamp() - seconds, UTC)


def test_busctls_answer() -> None:
    assert idle_since("b true\nt 1772362800000000\n") == 1772362800.0
    assert idle_since("b false\nt 0\n") == inf


def test_what_is_no_answer() -> None:
    for output in ("", "b true\n", "b maybe\nt 1\n", "t 1\nb true\n", "b true\nt x\n", "b true\nt 1\nb true\n", "\0"):
        with pytest.raises(ChildFailed):
            idle_since(output)


def reading(command: str, devices: Path) -> Reading:
    """Its first real answer."""
    return answered([LogindIdleness(Pace(), command, devices)])["idle"]


def terminal(devices: Path, name: str, used: datetime) -> None:
    """A terminal that somebody typed at then."""
    (devices / name).parent.mkdir(parents=True, exist_ok=True)
    (devices / name).touch()
    os.utime(devices / name, (used.timestamp(), used.timestamp()))


def test_somebody_at_either_is_somebody(tmp_path: Path) -> None:
    rows: list[tuple[bool, datetime, datetime | None, float, str]] = [
        (True, ago(2 * HOUR), None, 2 * HOUR, "logind"),
        (False, ago(2 * HOUR), None, 0, "logind"),
        (True, ago(2 * HOUR), ago(HOUR), HOUR, "terminals"),
        (True, ago(HOUR), ago(2 * HOUR), HOUR, "logind"),
        (False, ago(HOUR), ago(2 * HOUR), 0, "logind"),
        (True, ago(-HOUR), None, 0, "logind"),
    ]
    for number, (idle, since, typed, seconds, source) in enumerate(rows):
        folder = tmp_path / str(number)
        if typed:
            terminal(folder / "dev", "pts/0", typed)
            terminal(folder / "dev", "pts/1", ago(9 * HOUR))
        found = reading(answering(folder, "busctl", hint(idle, since)), folder / "dev")
        assert (found.name, found.value, found.unit) == ("idle", seconds, "s"), rows[number]
        assert found.source.startswith(source)


def test_where_logind_does_not_answer_terminals_do(tmp_path: Path) -> None:
    terminal(tmp_path / "dev", "pts/0", ago(HOUR))
    assert reading(executable(tmp_path, "busctl", "exit 1"), tmp_path / "dev").value == HOUR


def test_where_neither_answers_it_is_unknown(tmp_path: Path) -> None:
    found = reading(executable(tmp_path, "busctl", "exit 1"), tmp_path / "dev")
    assert found.unknown and found.reason and "exited with code 1" in found.reason
