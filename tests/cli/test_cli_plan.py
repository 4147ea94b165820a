"""`pocketllm plan`; and `pocketllm train` with settings of its own."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pocketllm.cli.job_views import plan_view
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import load_settings
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.commands import Run, child_environment, commands
from tests.support.daemon_documents import PLAN
from tests.support.daemon_double import DaemonDouble, announcement
from tests.support.in_process_app import in_process_app
from tests.support.rendering import rendered
from tests.support.tiny_models import tiny_model_folder

GIVEN = ("--mode", "full", "--batch", "16", "--probes", "2", "--steps", "9")
WISH = {"mode": "full", "batch": 16, "probes": 2, "steps": 9}


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
def alone(folder: DataFolder) -> Run:
    """Runs a command where there is no daemon."""
    return commands(folder.root)


def test_a_table_for_people() -> None:
    lines = [" ".join(line.split()) for line in rendered(plan_view(PLAN)).splitlines()]
    assert lines == [
        "Model tiny",
        "Trains a low-rank adapter (lora)",
        "Method exact; mezo: 340.0 MB, 1:00, 1.5 s per step",
        "Work 40 steps of 4 blocks of 64 tokens, 8 rows at a time",
        "Peak memory 348.0 MB",
        "libraries 280.0 MB",
        "training 61.0 MB of 1.5 GB allowed (training.memory_bytes)",
        "including activations of 2 layers: 4.7 MB, saves 0.05 s per step",
        "a layer's weights 7.0 MB",
        "Time 0:10, 250 ms per step",
        "Text 3 stored, 300 new words",
    ]


def test_train_passes_them_on(run: Run, double: DaemonDouble) -> None:
    assert run("train", *GIVEN, "--no-follow").exit_code == 0
    assert double.bodies("POST", "/jobs") == [WISH]


class TestPlan:
    def test_a_running_daemons_settings_count(self, alone: Run, folder: DataFolder) -> None:
        settings = load_settings({"data_dir": folder.root, "model": "other"}).model_dump(mode="json")
        (folder.root / "daemon.json").write_text(
            json.dumps(announcement("http://127.0.0.1:9") | {"settings": settings})
        )
        assert json.loads(alone("plan", "--json").stdout)["model"] == "other"
        assert json.loads(alone("plan", "--model", "tiny", "--json").stdout)["model"] == "tiny"

    def test_the_document_is_the_daemons(self, alone: Run, folder: DataFolder) -> None:
        result = alone("plan", "--batch", "3", "--probes", "2", "--steps", "9", "--json")
        assert result.exit_code == 0, result.stderr
        with in_process_app(folder.root) as daemon:
            asked = daemon.post("/jobs/plan", json={"batch": 3, "probes": 2, "steps": 9})
        assert json.loads(result.stdout) == asked.json()

    def test_texts_are_counted_where_there_are_some(self, alone: Run, folder: DataFolder) -> None:
        assert "none yet; add some with `pocketllm add`" in alone("plan").stdout
        assert not folder.database.exists()
        store = Store.open(folder.database)
        store.texts.add([NewText(text="two words", source="t")], now=datetime(2026, 1, 2, tzinfo=UTC))
        store.close()
        assert json.loads(alone("plan", "--json").stdout)["enough_text"] == {
            "enough": True,
            "texts": 1,
            "new_words": 2,
        }

    def test_the_address_that_a_dead_daemon_left_behind_is_no_daemon(self, alone: Run, folder: DataFolder) -> None:
        (folder.root / "daemon.json").write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:9"}))
        assert json.loads(alone("plan", "--json").stdout)["model"] == "tiny"

    def test_settings_count(self, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POCKETLLM_TRAINING__BATCH", "64")
        monkeypatch.setenv("POCKETLLM_TRAINING__MICRO_BATCH", "64")
        monkeypatch.setenv("POCKETLLM_TRAINING__BLOCK_TOKENS", "1024")
        monkeypatch.setenv("POCKETLLM_TRAINING__MEMORY_BYTES", "50000000")
        result = alone("plan")
        assert result.exit_code == 0, result.stderr
        assert "of 50.0 MB allowed" in result.stdout
        assert "Reduced: To fit into training.memory_bytes (50 MB), the number of a step's blocks" in result.stdout
        assert "was reduced from 64 to" in result.stdout

    def test_what_cannot_fit_names_the_memory_that_would_do(self, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POCKETLLM_TRAINING__MEMORY_BYTES", "50000000")
        result = alone("plan", "--mode", "full")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "training.memory_bytes allows 50 MB. Set it to 6" in result.stderr
        problem = json.loads(alone("plan", "--mode", "full", "--json").stderr)
        assert "Set it to 6" in problem["detail"]

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["--model", "absent"], 1, "There is no model in"),
            (["--model", "other", "--mode", "full"], 1, "other is stored as int8"),
            (["--mode", "all"], 2, "'all'"),
            (["--batch", "1025"], 2, "--batch"),
            (["--probes", "65"], 2, "--probes"),
            (["--steps", "0"], 2, "--steps"),
        ],
    )
    def test_mistakes(self, alone: Run, arguments: list[str], code: int, words: str) -> None:
        result = alone("plan", *arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert words in result.stderr

    def test_a_bad_setting(self, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POCKETLLM_TRAINING__BATCH", "0")
        result = alone("plan")
        assert result.exit_code == 1
        assert "training.batch" in result.stderr


def test_a_plan_needs_no_torch(folder: DataFolder) -> None:
    code = (
        "import sys; from pocketllm.cli.main import app; app(['plan', '--json'], standalone_mode=False); "
        "print([name for name in ('torch', 'transformers', 'fastapi') if name in sys.modules])"
    )
    environment = child_environment(folder.root)
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert said.splitlines()[-1] == "[]"


def test_sentences_of_another_program_cannot_steer_the_terminal() -> None:
    text = rendered(plan_view(PLAN | {"reductions": ["\x1b[2Jgone"], "model": "a\x07b"}))
    assert "\x1b[2J" not in text and "\x07" not in text
