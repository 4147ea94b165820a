"""`pocketllm doctor --json`: what it tells of a device, and nothing of the owner's."""

import json
from pathlib import Path

import pytest

from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.daemon.commands import commands
from tests.support.daemon.workers import NOW
from tests.support.models.tiny_models import tiny_model_folder

SECRET = "The combination of the safe is 7-31-12."


def test_it_tells_of_the_device_and_nothing_of_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    data = home / "data"
    tiny_model_folder(data / "models", "smollm2-135m-instruct")
    store = Store.open(data / "pocketllm.db")
    store.texts.add([NewText(text=SECRET, source="diary")], now=NOW)
    store.close()
    monkeypatch.setenv("HOME", str(home))
    text = commands(data)("doctor", "--json").stdout
    assert "combination" not in text and str(home) not in text
    report = json.loads(text)
    assert report["ok"] is all(finding["state"] != "bad" for finding in report["findings"])
    assert "data folder" in {finding["name"] for finding in report["findings"]} and "~/data" in text
    assert report["versions"]["torch"] and report["device"]["machine"]
    assert report["calibration"] is None  # the tiny model was never measured
    assert report["readings"] and all(reading["age_seconds"] >= 0 for reading in report["readings"])
