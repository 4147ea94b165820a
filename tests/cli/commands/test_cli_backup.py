"""`pocketllm backup`, `restore` and `verify`, on a real data folder with a real adapter."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pocketllm.daemon.adapter_files import digest_of
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.tools.backup import unpack
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import PERSON, Adapter, Outcome
from tests.support.daemon.commands import Run, child_environment, commands
from tests.support.daemon.real_daemon import eventually, running
from tests.support.daemon.workers import NOW, data_folder, queue_job
from tests.support.models.learning import some_adapter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """A data folder with texts and an adapter; tests change copies of it."""
    folder = data_folder(tmp_path_factory.mktemp("made") / "data")
    folder.tokens.write_text('{"owner": "secret"}')
    store = Store.open(folder.database)
    store.texts.add([NewText(text="Wind west, glass rising.", source="notes")], now=NOW)
    job = queue_job(store)
    adapter = some_adapter(LanguageModel(open_model_folder(folder.models / "tiny")))
    adapter.save(folder.adapter("adapter-1"))
    row = Adapter(
        id="adapter-1",
        sha256=digest_of(folder.adapter("adapter-1")),
        job_id=job.id,
        model="tiny",
        outcome=Outcome.LEARNED,
        created_at=NOW,
    )
    store.jobs.succeed(job.id, adapter=row, publish=True, now=NOW)
    store.close()
    return folder


def copied(made: DataFolder, root: Path) -> DataFolder:
    shutil.copytree(made.root, root)
    return DataFolder(root)


@pytest.fixture
def folder(made: DataFolder, tmp_path: Path) -> DataFolder:
    """A copy."""
    return copied(made, tmp_path / "data")


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
    former = Path(run.json("restore", str(backup), "--yes")["former"])
    assert (former / "pocketllm.db").read_bytes() == b"damaged"
    assert texts(folder) == before
    assert json.loads(folder.tokens.read_text()) == {"owner": "secret"}
    checks = run.json("verify")
    assert checks["ok"]
    assert {check["name"].split()[0] for check in checks["checks"]} == {"database", "adapter", "model"}
    elsewhere = DataFolder(tmp_path / "elsewhere")
    commands(elsewhere.root).said("restore", str(backup))
    assert texts(elsewhere) == before


def test_it_is_not_restored_under_a_running_daemon_or_scan(folder: DataFolder, run: Run, tmp_path: Path) -> None:
    run("backup", str(tmp_path / "backup.tar"))
    for lock, said in ((folder.daemon_lock, "A daemon"), (folder.scan_lock, "A scan of watched folders")):
        with locked(lock):
            assert f"{said} is running" in run.refused("restore", str(tmp_path / "backup.tar"), "--yes")
    assert not list(folder.root.glob("before-restore-*"))


SECRET = b"the secret of the harbour master"


def killed(folder: DataFolder, *words: str, when: Callable[[], object]) -> None:
    """Run a command and kill it once something is so."""
    command = [sys.executable, "-m", "pocketllm", *words]
    with subprocess.Popen(command, env=child_environment(folder.root), stdout=subprocess.DEVNULL) as process:
        eventually(lambda: process.poll() is not None or when(), "the moment for the kill")
        process.kill()
    assert process.returncode == -9, "it had ended before"


def holding(root: Path, secret: bytes) -> list[str]:
    """The files that hold something, but for backups that have their name."""
    return [str(path) for path in root.rglob("*") if path.is_file() and secret in path.read_bytes()]


def add_much(folder: DataFolder) -> None:
    """Let a backup take a while."""
    store = Store.open(folder.database)
    data = SECRET + os.urandom(64 << 20)
    store.files.add(owner=PERSON, filename="much", purpose="fine-tune", data=data, now=NOW)
    store.close()


@pytest.mark.slow
def test_a_killed_backup_leaves_nothing_that_a_deletion_does_not_reach(folder: DataFolder, tmp_path: Path) -> None:
    add_much(folder)
    elsewhere = tmp_path / "stick"
    elsewhere.mkdir()
    kept = elsewhere / "kept.tar"
    commands(folder.root)("backup", str(kept))

    def written() -> bool:
        return any(path.stat().st_size > len(SECRET) + 1000 for path in elsewhere.glob(".pocketllm-*/*"))

    killed(folder, "backup", str(elsewhere / "backup.tar"), when=written)
    assert list(elsewhere.glob(".pocketllm-*")) and len(holding(folder.root, SECRET)) == 1  # the database alone
    with running(folder.root) as daemon:
        assert list(elsewhere.iterdir()) == [kept]
        (text,) = daemon.client.get("/texts").json()["data"]
        receipt = daemon.client.delete(f"/texts/{text['id']}").json()["deletion"]
    assert receipt["copies"] == [str(kept)]
    assert f"These copies may still contain them; delete those you do not need: {kept}." in receipt["summary"]


@pytest.mark.slow
def test_a_killed_restore_leaves_nothing_after_the_next_start(folder: DataFolder, run: Run, tmp_path: Path) -> None:
    add_much(folder)
    backup = tmp_path / "backup.tar"
    run("backup", str(backup))

    def unpacked() -> list[Path]:
        return list(folder.root.glob(".restore-*/pocketllm.db"))

    killed(folder, "restore", str(backup), "--yes", when=unpacked)
    assert len(holding(folder.root, SECRET)) == 2 or unpacked()
    with running(folder.root):
        assert holding(folder.root, SECRET) == [str(folder.database)]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def in_place_of(file: Path) -> None:
    file.unlink()
    file.mkdir()


def sql(statement: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database:
            database.execute(statement)
            database.commit()

    return change


def garbled(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as content:
        for page in range(4096, size, 2 * 4096):
            content.seek(page)
            content.write(b"\xff" * 512)


DATABASE, ADAPTER, MODEL = "pocketllm.db", "adapters/*/adapter_model.safetensors", "models/tiny/model.safetensors"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "database: something else": (DATABASE, lambda file: file.write_bytes(b"something else" * 999), "database"),
    "database: empty": (DATABASE, lambda file: file.write_bytes(b""), "database"),
    "database: truncated": (DATABASE, cut, "database"),
    "database: missing": (DATABASE, Path.unlink, ""),
    "database: pages overwritten": (DATABASE, garbled, "database"),
    "database: a table is missing": (DATABASE, sql("DROP TABLE adapter"), "database"),
    "database: another's": (DATABASE, sql("ALTER TABLE adapter RENAME COLUMN sha256 TO other"), "database"),
    "database: an id that is no name": (DATABASE, sql("UPDATE adapter SET id = 'a' || char(0)"), "adapter"),
    "database: an id that is a number": (DATABASE, sql("UPDATE adapter SET id = x'ff00'"), "adapter"),
    "adapter: missing": (ADAPTER, Path.unlink, "adapter"),
    "adapter: a bit that flips": (ADAPTER, flip, "adapter"),
    "adapter: truncated": (ADAPTER, cut, "adapter"),
    "adapter: its folder is missing": ("adapters", shutil.rmtree, "adapter"),
    "adapter: a folder in its place": (ADAPTER, in_place_of, "adapter"),
    "model: missing weights": (MODEL, Path.unlink, "model"),
    "model: truncated weights": (MODEL, cut, "model"),
    "model: a folder in their place": (MODEL, in_place_of, "model"),
    "model: no manifest": ("models/tiny/pocketllm.json", Path.unlink, "model"),
    "model: a manifest of something else": ("models/tiny/pocketllm.json", lambda f: f.write_bytes(b"\xff[1]"), "model"),
}


def test_each_kind_of_damage_is_told_with_what_to_do(
    made: DataFolder, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for number, (what, (place, damage, name)) in enumerate(DAMAGE.items()):
        with subtests.test(what):
            folder = copied(made, tmp_path / str(number))
            run = commands(folder.root)
            [file] = folder.root.glob(place)
            damage(file)
            found = run("verify")
            assert found.exit_code == 1 and isinstance(found.exception, SystemExit), found.exception
            assert "Traceback" not in found.output
            if not name:
                assert "There is no database" in found.stderr and "--data-dir" in found.stderr
                continue
            assert any(line.split()[:2] == ["!", name] for line in found.stdout.splitlines()), found.stdout
            assert "what to do" in found.stdout
            checks = json.loads(run("verify", "--json").stdout)
            assert not checks["ok"] and [check for check in checks["checks"] if check["problem"]]


def manifest(text: bytes) -> Callable[[Path], None]:
    """A backup in which the manifest is this."""

    def change(file: Path) -> None:
        with tarfile.open(file, "w") as tar:
            (file.parent / "manifest").write_bytes(text)
            tar.add(file.parent / "manifest", "backup.json")

    return change


def test_each_kind_of_damage_to_a_backup_is_told(
    folder: DataFolder, run: Run, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    damages: dict[str, Callable[[Path], object]] = {
        "a bit that flips": flip,
        "truncated": cut,
        "missing": Path.unlink,
        "a folder in its place": in_place_of,
        "no archive": lambda file: file.write_bytes(b"no archive" * 999),
        "a list for checksums": manifest(b'{"format": 1, "sha256": [], "contents": {}}'),
        "no checksum": manifest(b'{"format": 1, "sha256": {"pocketllm.db": "0"}, "contents": {}}'),
        "a deep manifest": manifest(b"[" * 100_000),
    }
    before = texts(folder)
    run("backup", str(tmp_path / "whole.tar"))
    for what, damage in damages.items():
        with subtests.test(what):
            backup = tmp_path / f"{what}.tar"
            shutil.copy(tmp_path / "whole.tar", backup)
            damage(backup)
            found = run("restore", str(backup), "--yes")
            assert found.exit_code == 1 and isinstance(found.exception, SystemExit), found.exception
            assert str(backup) in found.stderr and not list(folder.root.glob("before-restore-*"))
            assert texts(folder) == before


def test_an_archive_writes_nothing_beside_the_folder_it_is_unpacked_into(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with tarfile.open(tmp_path / "hostile.tar", "w") as tar:
        for name in ("kept/file", "../escaped", "kept/../../escaped", str(tmp_path / "escaped")):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
    with tarfile.open(tmp_path / "hostile.tar") as tar:
        unpack(tar, into)
    assert [str(path.relative_to(into)) for path in into.rglob("*")] == ["kept", "kept/file"]
    assert not (tmp_path / "escaped").exists()
