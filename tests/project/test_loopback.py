"""No test, and no process that one starts, leaves this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loopback_only.sitecustomize import NOTES

ELSEWHERE = "192.0.2.1"  # of a network that documents use


def test_a_connection_to_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path / "notes"))
    with socket.socket() as one, pytest.raises(PermissionError, match="is not this machine"):
        one.connect((ELSEWHERE, 80))
    with socket.socket() as one, pytest.raises(PermissionError):
        one.bind(("0.0.0.0", 0))
    with pytest.raises(PermissionError):
        socket.getaddrinfo("example.org", 80)
    assert len((tmp_path / "notes").read_text().splitlines()) == 3


def test_nor_does_a_process_that_a_test_starts(tmp_path: Path) -> None:
    code = f"import socket; socket.socket().connect(({ELSEWHERE!r}, 80))"
    environment = os.environ | {NOTES: str(tmp_path / "notes")}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "PermissionError" in ended.stderr and ELSEWHERE in (tmp_path / "notes").read_text()
