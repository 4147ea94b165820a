"""systemd's notify protocol, with a real socket in the manager's place."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.daemon.systemd_notify import notify


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def test_what_it_is_told(listener: socket.socket) -> None:
    notify("READY=1", "STATUS=serving", environment={"NOTIFY_SOCKET": listener.getsockname()})
    assert listener.recv(4096) == b"READY=1\nSTATUS=serving"


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0pocketllm-test-{os.getpid()}")
        listening.settimeout(20)
        notify("WATCHDOG=1", environment={"NOTIFY_SOCKET": f"@pocketllm-test-{os.getpid()}"})
        assert listening.recv(4096) == b"WATCHDOG=1"


def test_where_nobody_listens_nothing_happens() -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}):
        notify("READY=1", environment=environment)
