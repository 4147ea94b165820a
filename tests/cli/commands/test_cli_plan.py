"""`pocketllm plan`: what a job would take, with or without a daemon."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import load_settings
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.daemon.commands import Run, child_environment, commands
from tests.support.daemon.in_process_app import in_process_app
from tests.support.daemon.served import announcement
from tests.support.models.tiny_models import tiny_model_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `tiny` and `other`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model_folder(folder)
    tiny_model_folder(folder, "other", hidden=64, dtype="int8")
    return folder


@pytest.fixture
def folder(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    """A data folder with these models and no daemon."""
    made = DataFolder(tmp_path / "alone")
    made.make()
    made.models.symlink_to(models)
    monkeypatch.setenv("POCKETLLM_MODEL", "tiny")
    return made


@pytest.fixture
def run(folder: DataFolder) -> Run:
    """Runs a command where there is no daemon."""
    return commands(folder.root)


def test_a_running_daemons_settings_count_and_an_ended_ones_do_not(run: Run, folder: DataFolder) -> None:
    (folder.root / "daemon.json").write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:9"}))
    assert run.json("plan")["model"] == "tiny"
    settings = load_settings({"data_dir": folder.root, "model": "other"}).model_dump(mode="json")
    (folder.root / "daemon.json").write_text(json.dumps(announcement("http://127.0.0.1:9") | {"settings": settings}))
    assert run.json("plan")["model"] == "other"
    assert run.json("plan", "--model", "tiny")["model"] == "tiny"


def test_the_document_is_the_daemons(run: Run, folder: DataFolder) -> None:
    planned = run.json("plan", "--method", "mezo", "--steps", "9")
    with in_process_app(folder.root) as daemon:
        asked = daemon.post("/jobs/plan", json={"method": "mezo", "steps": 9})
    assert planned == asked.json()


def test_texts_are_counted_where_there_are_some(run: Run, folder: DataFolder) -> None:
    assert run.json("plan")["enough_text"] == {"enough": False, "texts": 0, "new_words": 0}
    assert not folder.database.exists()
    store = Store.open(folder.database)
    store.texts.add([NewText(text="two words", source="t")], now=datetime(2026, 1, 2, tzinfo=UTC))
    store.close()
    found = run.json("plan")["enough_text"]
    assert found == {"enough": True, "texts": 1, "new_words": 2}


def test_settings_count(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLLM_TRAINING__MEMORY_BYTES", "50000000")
    monkeypatch.setenv("POCKETLLM_TRAINING__MODE", "full")
    assert "training.memory_bytes allows 50 MB. Set it to 6" in run.refused("plan")
    assert "Set it to 6" in json.loads(run.refused("plan", "--json"))["detail"]
    assert "other is stored as int8" in run.refused("plan", "--model", "other")
    monkeypatch.delenv("POCKETLLM_TRAINING__MODE")
    for name, value in (("BATCH", "64"), ("MICRO_BATCH", "64"), ("BLOCK_TOKENS", "1024")):
        monkeypatch.setenv(f"POCKETLLM_TRAINING__{name}", value)
    said = " ".join(run.said("plan").split())
    assert "of 50.0 MB allowed" in said and "was reduced from 64 to" in said
    assert "To fit into training.memory_bytes (50 MB), the number of a step's blocks" in said
    monkeypatch.setenv("POCKETLLM_TRAINING__BATCH", "0")
    assert "training.batch" in run.refused("plan")


def test_a_model_that_is_not_there(run: Run) -> None:
    assert "There is no model in" in run.refused("plan", "--model", "absent")


def test_a_plan_needs_no_torch(folder: DataFolder) -> None:
    code = (
        "import sys; from pocketllm.cli.main import app; app(['plan', '--json'], standalone_mode=False); "
        "print([name for name in ('torch', 'transformers', 'fastapi') if name in sys.modules])"
    )
    environment = child_environment(folder.root)
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert said.splitlines()[-1] == "[]"
