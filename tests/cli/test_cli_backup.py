"""`pocketllm backup`, `restore` and `verify`, on a real data folder with a real adapter."""

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.commands import Run, commands
from tests.support.replayable_jobs import learn, training
from tests.support.workers import NOW, data_folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    """A data folder with texts and an adapter."""
    folder = data_folder(tmp_path / "data")
    folder.tokens.write_text('{"owner": "secret"}')
    store = Store.open(folder.database)
    store.texts.add([NewText(text="Wind west, glass rising.", source="notes")], now=NOW)
    learn(folder, store, training())
    store.close()
    yield folder


@pytest.fixture
def run(folder: DataFolder) -> Run:
    return commands(folder.root)


def texts(folder: DataFolder) -> list[str]:
    store = Store.open(folder.database)
    found = [text.text for text in store.texts.page(after=None, limit=500)]
    store.close()
    return found


def test_what_is_restored_is_what_was_there(folder: DataFolder, run: Run, tmp_path: Path) -> None:
    backup, before = tmp_path / "backup.tar", texts(folder)
    assert "1 adapters" in run("backup", str(backup)).stdout
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    shutil.rmtree(folder.adapters)
    folder.database.write_bytes(b"damaged")
    assert run("verify").exit_code == 1
    restored = run("restore", str(backup), "--yes", "--json")
    former = json.loads(restored.stdout)["former"]
    assert (Path(former) / "pocketllm.db").read_bytes() == b"damaged"
    assert texts(folder) == before
    assert json.loads(folder.tokens.read_text()) == {"owner": "secret"}
    checks = json.loads(run("verify", "--replay", "--json").stdout)
    assert checks["ok"] and {check["name"].split()[0] for check in checks["checks"]} == {
        *("database", "adapter", "model", "steps")
    }


def test_a_backup_elsewhere_makes_a_new_folder(folder: DataFolder, run: Run, tmp_path: Path) -> None:
    run("backup", str(tmp_path / "backup.tar"))
    other = DataFolder(tmp_path / "other")
    assert commands(other.root)("restore", str(tmp_path / "backup.tar")).exit_code == 0
    assert texts(other) == texts(folder)


def test_a_damaged_backup_changes_nothing(folder: DataFolder, run: Run, tmp_path: Path) -> None:
    backup, before = tmp_path / "backup.tar", texts(folder)
    run("backup", str(backup))
    data = bytearray(backup.read_bytes())
    data[len(data) // 3] ^= 1
    backup.write_bytes(data)
    assert "is damaged" in run("restore", str(backup), "--yes").stderr
    backup.write_bytes(data[: len(data) // 2])
    assert "cut short" in run("restore", str(backup), "--yes").stderr
    assert texts(folder) == before and not list(folder.root.glob("before-restore-*"))


def test_it_is_not_restored_under_a_running_daemon(folder: DataFolder, run: Run, tmp_path: Path) -> None:
    run("backup", str(tmp_path / "backup.tar"))
    with locked(folder.daemon_lock):
        assert "A daemon runs on" in run("restore", str(tmp_path / "backup.tar"), "--yes").stderr


def test_a_bit_that_flips_is_found(folder: DataFolder, run: Run) -> None:
    (weights,) = folder.adapters.glob("*/adapter_model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = run("verify", "--json")
    assert found.exit_code == 1
    assert [check["problem"] for check in json.loads(found.stdout)["checks"] if check["problem"]] == [
        "it is not what was written"
    ]
