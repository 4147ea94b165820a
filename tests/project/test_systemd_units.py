"""The systemd units: what systemd itself says of them, and the daemon under the notify protocol."""

import re
import signal
import socket
from pathlib import Path

import pytest

from pocketllm.daemon.folder_scans import WatchedFolder, changed_folders
from pocketllm.daemon.paths import DataFolder
from pocketllm.errors import EXIT_CONFIG
from tests.support.daemon.real_daemon import eventually, running
from tests.support.models.tiny_models import tiny_model_folder
from tests.support.paths import ROOT
from tests.support.systemd import analyze, complaints, with_systemd

SYSTEMD = ROOT / "systemd"
UNITS = ("pocketllm.service", "pocketllm-system.service")
#: systemd-analyze's rating of how exposed a service is: 0 not at all, 10 to everything.
MAX_EXPOSED = 2.5


def runnable(unit: str, folder: Path) -> Path:
    """The unit with a command that is there, which `verify` looks for."""
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", (SYSTEMD / unit).read_text(), flags=re.MULTILINE)
    copy = folder / "pocketllm.service"
    copy.write_text(text)
    return copy


@with_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(tmp_path: Path, unit: str) -> None:
    assert complaints(runnable(unit, tmp_path), of_user=unit == "pocketllm.service") == ""


@with_systemd
def test_the_system_unit_is_walled_in(tmp_path: Path) -> None:
    ended = analyze("security", "--offline=true", "--no-pager", str(runnable("pocketllm-system.service", tmp_path)))
    rating = re.search(r"Overall exposure level for .*: ([\d.]+)", ended.stdout)
    assert rating is not None, ended.stdout + ended.stderr
    assert float(rating[1]) <= MAX_EXPOSED, ended.stdout


def test_a_daemon_that_is_refused_for_its_settings_is_not_started_again() -> None:
    for unit in UNITS:
        assert f"RestartPreventExitStatus={EXIT_CONFIG}" in (SYSTEMD / unit).read_text().splitlines()


def test_the_daemon_under_the_notify_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY when it answers, WATCHDOG from the tick, STOPPING before it ends, well within the unit's timeout."""
    folder = tmp_path / "data"
    folder.mkdir()
    tiny_model_folder(folder / "models")
    with changed_folders(DataFolder(folder)) as watched:
        watched.append(WatchedFolder(path=str(tmp_path), name="notes"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "120000000")
        with running(folder, MODEL="tiny", IDLE_TICK_SECONDS="0.2") as daemon:
            heard: list[str] = []

            def hear(wanted: str) -> None:
                while wanted not in (heard or [""])[-1]:
                    heard.append(manager.recv(4096).decode())  # times out

            hear("READY=1")
            assert "STATUS=serving tiny" in heard[-1]
            for _ in range(2):
                hear("WATCHDOG=1")
                assert "STATUS=nothing to train on" in heard.pop()
            eventually(lambda: daemon.client.get("/folders").json()["data"][0]["scanned_at"], "a scan of the folder")
            assert daemon.end(signal.SIGTERM) == 0
            hear("STOPPING=1")
