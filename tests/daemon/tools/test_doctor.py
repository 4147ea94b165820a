"""What the doctor finds out about torch, memory cgroups and open files."""

import resource
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from pocketllm.daemon.conditions.discovery import Places, discover_sensors
from pocketllm.daemon.settings import load_settings
from pocketllm.daemon.tools import doctor
from pocketllm.daemon.tools.doctor import ENOUGH_FILES, Finding, examine, of_libraries
from tests.support.executables import executable

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"


@pytest.mark.parametrize(
    ("program", "state", "message", "advice"),
    [
        ("pass", "good", "work", ""),
        (DIES, "bad", "illegal instruction", '"torch<2.10"'),
        ("import not_installed", "bad", "No module named 'not_installed'", "install them"),
    ],
)
def test_torch_is_tried_in_a_child(program: str, state: str, message: str, advice: str) -> None:
    found = of_libraries(program)
    assert (found.name, found.state) == ("libraries", state)
    assert message in found.message and advice in (found.advice or "")


def findings(folder: Path, cgroups: Path) -> dict[str, Finding]:
    executable(folder / "bin", "systemctl", "true")
    here = Places(environment={"PATH": str(folder / "bin")}, supplies=folder, graphics=folder / "none", cgroups=cgroups)
    sensors = discover_sensors(folder, folder / "idle", here)
    found = examine(load_settings({"data_dir": folder}), sensors, here, lambda: datetime.now(UTC))
    assert {reading.name for reading in found.readings} >= {"power", "memory"}
    return {finding.name: finding for finding in found.findings}


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (ENOUGH_FILES // 2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_kernel_without_memory_cgroups_and_a_shell_with_few_files(tmp_path: Path, few_files: None) -> None:
    (tmp_path / "cgroups").mkdir()
    (tmp_path / "cgroups/cgroup.controllers").write_text("cpuset cpu io pids\n")
    found = findings(tmp_path, tmp_path / "cgroups")
    assert found["libraries"].state == "good"
    assert "cgroup_enable=memory" in (found["memory limit"].advice or "")
    assert f"{ENOUGH_FILES // 2} files" in found["open files"].message


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_said_of_limits_that_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(doctor, "of_libraries", partial(of_libraries, "pass"))  # importing it takes seconds
    (tmp_path / "cgroups/memory").mkdir(parents=True)
    if version == 2:
        (tmp_path / "cgroups/cgroup.controllers").write_text("cpu memory pids\n")
    assert not {"memory limit", "open files"} & findings(tmp_path, tmp_path / "cgroups").keys()
