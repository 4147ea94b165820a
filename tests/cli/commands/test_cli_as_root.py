"""Root's commands on another user's data folder: that user runs them, so the user's daemon can use what they make."""

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon.commands import child_environment
from tests.support.daemon.real_daemon import eventually
from tests.support.models.tiny_models import tiny_llama_folder
from tests.support.paths import ROOT

USER = "nobody"
Run = Callable[..., subprocess.CompletedProcess[str]]


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
PATHS = f"{ROOT}{os.pathsep}{sysconfig.get_path('purelib')}"


def command(place: Path, *arguments: str, paths: str = PATHS) -> list[str]:
    """What runs a command by a Python that all may read, for this one may be in root's home."""
    mounting = 'mount --bind "$1" "$2" && cd / && shift 2 && exec env "$@"'
    python = [f"{place}/python/bin/{Path(sys.executable).resolve().name}", "-m", "pocketllm"]
    as_all = ["unshare", "--mount", "sh", "-c", mounting, "sh", sys.base_prefix, f"{place}/python"]
    return [*as_all, f"PYTHONPATH={paths}", *python, *arguments]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may use, other than pytest's own."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    (folder / "python").mkdir()
    try:
        told = subprocess.run(command(folder, "--version"), user=0, capture_output=True, text=True, check=False)
        if told.returncode or not all(parent.stat().st_mode & 1 for parent in (ROOT, *ROOT.parents)):
            pytest.skip(f"others cannot be given this Python and this checkout: {told.stderr}")
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def data(place: Path) -> Path:
    """The user's data folder."""
    folder = place / "data"
    folder.mkdir(mode=0o700)
    shutil.chown(folder, USER)
    return folder


@pytest.fixture
def run(place: Path, data: Path) -> Run:
    """Run a command as root, on this folder."""

    def run_command(*arguments: str, paths: str = PATHS) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(place, *arguments, "--data-dir", str(data), paths=paths),
            env=environment(data),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run_command


def environment(data: Path) -> dict[str, str]:
    named = child_environment(data) | {"POCKETLLM_CONFIG": str(data / "config.toml")}
    del named["POCKETLLM_DATA_DIR"]
    return named


def of_others(data: Path) -> list[str]:
    """What is not the user's."""
    user = pwd.getpwnam(USER).pw_uid
    return [str(path) for path in (data, *data.rglob("*")) if path.lstat().st_uid != user]


@pytest.mark.slow
def test_a_backup_is_made_and_restored_by_the_folders_owner(place: Path, data: Path, run: Run) -> None:
    serving = command(place, "serve", "--port", "0", "--data-dir", str(data))
    with subprocess.Popen(serving, env=environment(data), stderr=subprocess.DEVNULL) as daemon:
        try:
            eventually((data / "daemon.json").exists, "the daemon")
            assert Path(f"/proc/{daemon.pid}").stat().st_uid == pwd.getpwnam(USER).pw_uid
            assert run("token", "create", "notes", "--scope", "ingest").returncode == 0
            kept = run("backup", str(place / "kept.tar"))
            assert kept.returncode == 0, kept.stderr
        finally:
            daemon.terminate()
    restored = run("restore", str(place / "kept.tar"), "--yes")
    assert restored.returncode == 0, restored.stderr
    assert list(data.glob("before-restore-*")) and of_others(data) == []
    assert run("verify").returncode == 0


@pytest.mark.slow
def test_a_model_is_added_for_the_folders_owner(place: Path, data: Path, run: Run) -> None:
    source = tiny_llama_folder(place / "source")
    subprocess.run(["chmod", "-R", "a+rX", str(source)], check=True)
    added = run("models", "add", str(source), "--name", "mine")
    assert added.returncode == 0, added.stderr
    assert (data / "models/mine").is_dir() and of_others(data) == []


@pytest.mark.smoke
def test_a_file_that_the_owner_may_not_use_is_named(data: Path, run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "kept.tar").touch()
    (tmp_path / "notes").mkdir()
    (data / "pocketllm.db").touch()
    shutil.chown(data / "pocketllm.db", USER)
    for arguments, name in (
        (("restore", "--yes"), "kept.tar"),
        (("backup",), "made.tar"),
        (("import",), "notes"),
        (("folders", "add"), "notes"),
    ):
        ended = run(*arguments, str(tmp_path / name))
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        assert "Permission denied. The command runs as nobody: choose a file that this user can access." in ended.stderr
    assert "Permission denied" in run("models", "add", str(tmp_path / "model.gguf")).stderr
    assert of_others(data) == []


def test_a_program_that_the_owner_may_not_read_is_named(data: Path, place: Path, run: Run) -> None:
    """As that of a virtual environment in root's home."""
    (place / "hidden").mkdir(mode=0o700)
    shutil.copytree(ROOT / "pocketllm", place / "hidden/pocketllm", ignore=shutil.ignore_patterns("__pycache__"))
    ended = run("token", paths=f"{place / 'hidden'}{os.pathsep}{sysconfig.get_path('purelib')}")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"User nobody cannot read {place}/hidden/pocketllm/home.py" in ended.stderr


def test_a_folder_of_nobody_known_is_refused(data: Path, run: Run) -> None:
    os.chown(data, 54321, 54321)
    ended = run("token")
    assert ended.returncode == 1 and "belongs to user 54321, who does not exist" in ended.stderr
