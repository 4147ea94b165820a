"""The daemon's scans of the watched folders: processes that may fail, hang, or be forbidden their priority."""

import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pocketllm.daemon.folder_scans import FRESH_SECONDS, INTERVAL_SECONDS, MAX_SECONDS, FolderScans
from pocketllm.daemon.paths import DataFolder
from tests.support.daemon.commands import WAIT_SECONDS
from tests.support.paths import ROOT

WITHOUT_PRIORITIES = """
import os, sys, threading
from pathlib import Path
from pocketllm.daemon.folder_scans import FolderScans
from pocketllm.daemon.paths import DataFolder
from tests.support.faults import forbid_setpriority

forbid_setpriority()
try:
    os.setpriority(os.PRIO_PROCESS, os.getpid(), 19)
except PermissionError:
    print("forbidden")
ended = threading.Event()
scans = FolderScans(DataFolder(Path(sys.argv[1])), lambda: 0.0, ended.set, command=["true"])
print(scans.begin(0.0), ended.wait(60), scans.begin(1.0))
"""


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path)
    made.folders.write_text("[]")
    return made


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the call's number is not known")
def test_a_scan_runs_where_no_priority_can_be_set(data: DataFolder) -> None:
    command = [sys.executable, "-c", WITHOUT_PRIORITIES, str(data.root)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert ended.stdout == "forbidden\nTrue True False\n", ended.stderr


def test_a_scan_that_hangs_is_ended_and_holds_no_job_back(data: DataFolder) -> None:
    now, ended = [0.0], threading.Event()
    scans = FolderScans(data, lambda: now[0], ended.set, command=["sh", "-c", "exec sleep 600"])
    assert scans.begin(INTERVAL_SECONDS)
    now[0] = MAX_SECONDS - 1
    assert scans.begin(FRESH_SECONDS) and not ended.is_set()
    now[0] = MAX_SECONDS
    assert not scans.begin(FRESH_SECONDS)
    assert ended.wait(WAIT_SECONDS)
    now[0] += FRESH_SECONDS - 1
    assert not scans.begin(FRESH_SECONDS)
    now[0] += 1
    assert scans.begin(FRESH_SECONDS)
    ended.clear()
    scans.close()
    assert ended.wait(WAIT_SECONDS)


def test_a_long_scan_is_fresh_when_it_ends(data: DataFolder) -> None:
    now, ended = [0.0], threading.Event()
    scans = FolderScans(data, lambda: now[0], ended.set, command=["sh", "-c", "exec sleep 600"])
    assert scans.begin(INTERVAL_SECONDS)
    now[0] = FRESH_SECONDS + 1
    scans.close()  # it ends
    assert ended.wait(WAIT_SECONDS)
    assert not scans.begin(FRESH_SECONDS)
