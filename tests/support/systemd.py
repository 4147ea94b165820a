"""systemd's own opinion of a unit, where no systemd runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

with_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed: apt-get install systemd"
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze` with these arguments.

    The user's manager wants a runtime folder, even to verify, and names sockets in it: at most 107 bytes each, and so
    none of pytest's long paths.
    """
    with tempfile.TemporaryDirectory() as runtime:
        environment = os.environ | {"XDG_RUNTIME_DIR": runtime}
        command = ["systemd-analyze", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def complaints(unit: Path, *, of_user: bool) -> str:
    """What systemd finds wrong in a unit; empty where it finds nothing."""
    ended = analyze("verify", "--man=no", *(["--user"] if of_user else []), str(unit))
    return ended.stderr.strip() or ("" if ended.returncode == 0 else f"exit code {ended.returncode}")
