"""`pocketllm doctor --report`: a rehearsal with a real daemon, and nothing of the owner's in the file."""

import json
from pathlib import Path

import pytest

from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.daemon.commands import commands
from tests.support.daemon.workers import NOW
from tests.support.models.tiny_models import tiny_model_folder

SECRET = "The combination of the safe is 7-31-12."


@pytest.mark.slow
def test_a_report_tells_of_the_device_and_a_rehearsal_and_nothing_of_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    data = home / "data"
    # So large that a step takes a while, and the worker is caught at it.
    tiny_model_folder(data / "models", "smollm2-135m-instruct", layers=12, hidden=512)
    store = Store.open(data / "pocketllm.db")
    store.texts.add([NewText(text=SECRET, source="diary")], now=NOW)
    store.close()
    monkeypatch.setenv("HOME", str(home))
    run = commands(data)
    ended = run("doctor", "--report", str(tmp_path / "report.json"))
    text = (tmp_path / "report.json").read_text()
    assert "combination" not in text and str(home) not in text
    report = json.loads(text)
    rehearsal = report["rehearsal"]
    assert (rehearsal["error"], rehearsal["state"], rehearsal["steps"]) == (None, "succeeded", 6)
    assert 2 <= rehearsal["killed_at_step"] < 6
    assert "interrupted" in [event["kind"] for event in rehearsal["events"]]
    assert rehearsal["answer"]["text"]
    assert report["versions"]["torch"]
    assert report["calibration"] is None  # the tiny model was never measured
    assert all(reading["age_seconds"] >= 0 for reading in report["readings"])
    assert "The rehearsal made 6 steps" in ended.stderr
    assert not list(data.glob("rehearsal-*"))
    assert "already exists. Give a new file name" in run("doctor", "--report", str(tmp_path / "report.json")).stderr


def test_without_a_model_the_report_says_so(tmp_path: Path) -> None:
    run = commands(tmp_path / "data")
    assert run("doctor", "--report", str(tmp_path / "report.json")).exit_code == 1
    assert "pocketllm models add" in json.loads((tmp_path / "report.json").read_text())["rehearsal"]["error"]
