"""The conditions over HTTP: the screen that an app tells of, snooze, a job's runs."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.daemon.in_process_app import InProcessApp, assert_problem, in_process_app
from tests.support.daemon.real_daemon import eventually
from tests.support.executables import executable


def running_job(api: InProcessApp) -> str:
    """A job that a worker is at."""
    api.add("words " * 50)
    job = str(api.post("/jobs", json={"now": False}).json()["id"])
    api.tick()
    assert api.runner.job_id == job
    return job


def test_a_snooze_pauses_what_runs_and_ends_by_itself_or_is_ended(api: InProcessApp) -> None:
    job = running_job(api)
    response = api.post("/status/snooze", json={"minutes": 30})
    until = (api.clock.now + timedelta(minutes=30)).isoformat().replace("+00:00", "Z")
    assert response.json() == {"snoozed_until": until}
    api.tick()
    assert api.runner.job_id is None
    [reason] = api.get(f"/jobs/{job}").json()["reasons"]
    assert reason.startswith("snoozed until")
    assert api.get("/status").json()["training"]["snoozed_until"] == until
    api.tick(29 * 60)
    assert api.runner.job_id is None
    api.tick(60)
    assert api.runner.started == [job] * 2
    api.post("/status/snooze", json={"minutes": 30})
    api.tick(61)
    assert api.get(f"/jobs/{job}").json()["state"] == "paused"
    assert api.post("/status/snooze", json={}).json() == {"snoozed_until": None}
    api.tick(61)
    assert api.runner.started == [job] * 3


def test_a_snooze_until_what_is_no_moment(api: InProcessApp) -> None:
    # The first has no zone; the third is before UTC's first; the last would be beyond the last local time.
    for until in ("2030-01-01T00:00:00", "tomorrow", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z"):
        refused = assert_problem(api.post("/status/snooze", json={"until": until}), 422, "invalid_value")
        assert refused["error"]["param"] == "until"
    assert api.get("/status").json()["training"]["snoozed_until"] is None


def test_the_runs_of_a_job(api: InProcessApp) -> None:
    job = running_job(api)
    api.battery.value = 78.0
    api.tick(40)
    api.power.value = False
    api.tick(20)
    [window] = api.get(f"/jobs/{job}").json()["runs"]
    assert (window["began_at"], window["ended_at"]) == ("2026-03-01T12:00:02Z", "2026-03-01T12:01:02Z")
    assert window["began_because"] == "power, battery 80 %, memory 4000 MB"
    assert window["ended_because"] == "not on external power"
    assert (window["seconds"], window["cpu_seconds"], window["steps"]) == (60.0, 1.5, 0)


def test_the_wake_lock_is_held_while_a_worker_runs_and_no_longer(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "calls"
    for name in ("termux-wake-lock", "termux-wake-unlock"):
        executable(tmp_path / "bin", name, f'echo "$(basename "$0")" >> "{note}"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with in_process_app(tmp_path / "data") as api:
        shutil.copytree(models, api.services.folder.models)
        job = running_job(api)
        api.power.value = False
        api.tick()  # it waits
        api.power.value = True
        api.tick(90)
        api.runner.ends(1, "no memory")
        api.tick()  # it ended by itself
        api.tick(90)
        api.post(f"/jobs/{job}/cancel")
        wanted = ["termux-wake-lock", "termux-wake-unlock"] * 3
        eventually(lambda: note.exists() and note.read_text().split() == wanted, "all calls", seconds=20)
