"""The data folder is its owner's alone."""

import os
import stat
from pathlib import Path

import pytest

from pocketllm.daemon.errors import BadSettings, DaemonError
from pocketllm.daemon.paths import DataFolder, ignored_config, is_there


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_others_could_read_is_made_private(tmp_path: Path) -> None:
    adapter = tmp_path / "data" / "adapters" / "one"
    adapter.mkdir(parents=True)
    for file in (tmp_path / "data" / "pocketllm.db", adapter / "adapter_model.safetensors"):
        file.write_bytes(b"")
        file.chmod(0o666)
    adapter.chmod(0o777)
    DataFolder(tmp_path / "data").make()
    found = {path.name: mode(path) for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]}
    assert found == {
        "data": 0o700,
        "adapters": 0o700,
        "one": 0o700,
        "pocketllm.db": 0o600,
        "adapter_model.safetensors": 0o600,
    }


def test_a_planted_link_is_refused_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("somebody else's")
    for name in ("pocketllm.db", "daemon.new", "worker.log", "adapters/one/adapter_config.json"):
        planted = tmp_path / "data" / name
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.symlink_to(other)
        with pytest.raises(BadSettings, match=f"{planted} is a symbolic link.*Remove it"):
            DataFolder(tmp_path / "data").make()
        planted.unlink()
    assert other.read_text() == "somebody else's"


def test_a_model_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "data" / "models").mkdir(parents=True)
    (tmp_path / "data" / "models" / "tiny").symlink_to(tmp_path)
    DataFolder(tmp_path / "data").make()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(BadSettings, match="belongs to another user"):
        DataFolder(tmp_path).make()


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DaemonError, match="cannot be used"):
        DataFolder(tmp_path / "file").make()


def test_what_cannot_be_looked_at_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    found = [name for name in (".", "file", "missing", "file/below", "circle") if is_there(tmp_path / name)]
    assert found == [".", "file"]
    with pytest.raises(OSError, match="too long"):
        is_there(tmp_path / ("n" * 999))


def test_settings_in_the_data_folder_are_said_to_be_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLLM_CONFIG", str(tmp_path / "settings.toml"))
    assert ignored_config(tmp_path) is None
    (tmp_path / "config.toml").write_text("port = 1\n")
    assert f"settings come from {tmp_path / 'settings.toml'}" in (ignored_config(tmp_path) or "")
    monkeypatch.setenv("POCKETLLM_CONFIG", str(tmp_path / "config.toml"))
    assert ignored_config(tmp_path) is None
