"""The source distribution, and the wheel that is built from it: all of the program, nothing else, and it runs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pocketllm import __version__
from tests.support.paths import ROOT

pytestmark = pytest.mark.smoke

ROOMS = ("api", "backprop", "daemon", "engine", "mezo", "storage")
DATA = ("systemd", "termux", "api/dashboard/static")
UV = Path(sys.executable).parent / "uv"


def copy_checkout(target: Path) -> None:
    """Copy what git has, so that a build cannot lean on leftovers of the checkout."""
    target.mkdir()
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, check=True, capture_output=True).stdout
    archive = target.with_suffix(".tar")
    subprocess.run(["tar", "-C", ROOT, "--null", "-T", "-", "-cf", archive], input=files, check=True)
    subprocess.run(["tar", "-C", target, "-xf", archive], check=True)


def test_it_is_built_whole_and_runs(tmp_path: Path) -> None:
    source, built, installed = tmp_path / "source", tmp_path / "built", tmp_path / "installed"
    copy_checkout(source)
    # uv fetches setuptools: it may leave this machine.
    environment = os.environ | {"PYTHONPATH": ""}
    build: list[str | Path] = [UV, "build", "--quiet", "--python", sys.executable, "--out-dir", built, source]
    subprocess.run(build, check=True, env=environment)
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")

    modules = {
        str(path.relative_to(source)) for room in (*ROOMS, "pocketllm") for path in (source / room).rglob("*.py")
    }
    data = {str(path.relative_to(source)) for room in DATA for path in (source / room).rglob("*") if path.is_file()}
    own = {"pocketllm/sample_notes.txt", "pocketllm/ordinary_text.txt", "pocketllm/py.typed"}
    with tarfile.open(sdist) as archive:
        assert modules | data | own <= {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name if name.startswith("pocketllm/") else f"pocketllm/{name}" for name in modules | data | own}

    install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", sys.executable]
    install += ["--no-deps", "--target", installed, wheel]
    subprocess.run(install, check=True)
    program = "import pocketllm, sys; from pocketllm.cli.main import main; print(pocketllm.__file__); main()"
    command = [sys.executable, "-c", program, "--version"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    said = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == [str(installed / "pocketllm/__init__.py"), f"pocketllm {__version__}"]
