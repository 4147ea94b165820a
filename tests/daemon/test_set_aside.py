"""Adapters that the database does not know are kept, and the owner is told."""

import json
import logging
from pathlib import Path

import pytest

from pocketllm.daemon.adapter_files import set_aside_problem
from pocketllm.daemon.settings import load_settings
from pocketllm.daemon.tools.doctor import _of_folder
from tests.support.daemon.commands import commands
from tests.support.daemon.in_process_app import NOON, in_process_app
from tests.support.daemon.scheduler_world import SchedulerWorld, scheduler_world
from tests.support.daemon.workers import write_adapter_files


def learned(root: Path) -> str:
    """A folder in which a night has learned something; the adapter's id."""
    with scheduler_world(root) as world:
        world.finish(job := world.request_by_words())
        world.folder.run("job-half").mkdir(parents=True)
        return f"of-{job}"


def started_anew(root: Path, caplog: pytest.LogCaptureFixture) -> SchedulerWorld:
    """A new daemon on the folder, whose database is gone."""
    for file in (root / "data").glob("pocketllm.db*"):
        file.unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING), scheduler_world(root) as world:
        world.scheduler.recover(NOON)
        world.tick()
        return world


def test_a_new_database_in_a_used_folder_deletes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = learned(tmp_path)
    world = started_anew(tmp_path, caplog)
    assert (world.folder.set_aside / adapter / "adapter_model.safetensors").read_bytes() == b"x"
    assert world.folder.run("job-half").is_dir(), "half a night's learning"
    problem = set_aside_problem(world.folder)
    assert problem is not None and str(world.folder.set_aside) in problem and problem in caplog.messages
    [finding] = [one for one in _of_folder(world.folder, world.settings) if one.name == "set aside"]
    assert (finding.state, finding.message) == ("unknown", problem)
    checks = json.loads(commands(world.folder.root)("verify", "--json").stdout)["checks"]
    assert {"name": "set aside", "problem": problem} in checks
    with in_process_app(world.folder.root) as api:
        assert problem in api.get("/status").json()["model"]["message"]


def test_the_same_adapter_twice_is_kept_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = learned(tmp_path)
    started_anew(tmp_path, caplog)
    write_adapter_files(tmp_path / "data/adapters" / adapter)
    world = started_anew(tmp_path, caplog)
    assert sorted(path.name for path in world.folder.set_aside.iterdir()) == [adapter, f"{adapter}-20260301T120000Z"]
    assert list(world.folder.adapters.iterdir()) == []


def test_nothing_is_said_where_nothing_was_set_aside(tmp_path: Path) -> None:
    learned(tmp_path)
    folder = tmp_path / "data"
    with in_process_app(folder) as api:
        assert "database does not list" not in str(api.get("/status").json()["model"]["message"])
        findings = _of_folder(api.services.folder, load_settings({"data_dir": folder}))
        assert "set aside" not in [finding.name for finding in findings]


def test_the_folder_may_be_in_sync_with_another_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learned(tmp_path)
    marker = tmp_path / "data/adapters/.stfolder"  # without which Syncthing stops
    marker.mkdir()
    started_anew(tmp_path, caplog)
    assert marker.is_dir()
