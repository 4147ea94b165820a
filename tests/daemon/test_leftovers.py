"""What may lie beside the database: what is swept, what is listed, and the room that is reserved for deleting."""

from pathlib import Path

import pytest

from pocketllm.daemon.errors import DaemonError
from pocketllm.daemon.leftovers import RESERVE_BYTES, copies, noted_backup, reserve_lent, sweep
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder


def test_the_reserve_is_there_but_while_it_is_lent(folder: DataFolder) -> None:
    for _ in range(2):
        with reserve_lent(folder):
            assert not folder.reserve.exists()
        assert folder.reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    with pytest.raises(ZeroDivisionError), reserve_lent(folder):
        1 / 0  # noqa: B018
    assert folder.reserve.exists()


def test_what_a_killed_restore_left_is_swept(folder: DataFolder) -> None:
    left = folder.root / ".restore-abc"
    left.mkdir()
    (left / "pocketllm.db").write_text("secret")
    assert sweep(folder) and not left.exists()


def test_exports_are_swept_only_at_the_start(folder: DataFolder) -> None:
    (folder.exports / "tmp1").mkdir(parents=True)
    assert sweep(folder) and folder.exports.exists()
    assert sweep(folder, starting=True) and not folder.exports.exists()


def test_what_a_killed_backup_left_is_swept_and_nothing_else(folder: DataFolder, tmp_path: Path) -> None:
    others = [tmp_path / ".pocketllm-other.tar-abc", tmp_path / "backup.tar.old"]
    for other in others:
        other.write_text("another's")
    for name in ("backup.tar", "a [b] *.tar", "two\nlines", "x" * 250, "\udcff.tar"):
        with noted_backup(folder, tmp_path / name):
            left = tmp_path / f".pocketllm-{name[:200]}-abc"
            left.write_text("secret")
            assert not sweep(folder) and left.exists()  # it is being written
        assert sweep(folder) and not left.exists()
        assert all(other.exists() for other in others)


def test_a_second_backup_is_refused_meanwhile(
    folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketllm.daemon.leftovers._LOCK_SECONDS", 0.1)
    second = noted_backup(folder, tmp_path / "backup.tar")
    with locked(folder.backups), pytest.raises(DaemonError, match="Another backup"), second:
        pass


def test_copies_are_backups_that_may_be_there_and_what_restores_kept(folder: DataFolder, tmp_path: Path) -> None:
    assert copies(folder) == []
    away = tmp_path / "stick" / "away.tar"
    for target in (tmp_path / "there.tar", tmp_path / "gone.tar", away, tmp_path / "there.tar"):
        with noted_backup(folder, target):
            pass
    (tmp_path / "there.tar").touch()
    former = folder.root / "before-restore-20260101T000000Z"
    former.mkdir()
    assert copies(folder) == [str(tmp_path / "there.tar"), str(away), str(former)]
