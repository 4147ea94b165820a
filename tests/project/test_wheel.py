"""What is in the wheel: all of the program, and nothing else."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel built from what git has, so that a build cannot lean on leftovers of the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-C", ROOT, "--null", "-T", "-", "-cf", source / "s.tar"], input=files, check=True)
    subprocess.run(["tar", "-C", source, "-xf", source / "s.tar"], check=True)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    # pip fetches setuptools: it may leave this machine.
    subprocess.run([*wheel, "--disable-pip-version-check"], check=True, env=os.environ | {"PYTHONPATH": ""})
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_holds_every_module(names: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pocketllm").rglob("*.py")}
    for room in ("api", "backprop", "daemon", "engine", "mezo", "storage"):
        modules |= {f"pocketllm/{path.relative_to(ROOT)}" for path in (ROOT / room).rglob("*.py")}
    assert modules <= names


def test_holds_the_data_files(names: set[str]) -> None:
    assert {"pocketllm/sample_notes.txt", "pocketllm/py.typed"} <= names
    for room in ("systemd", "termux", "api/dashboard/static"):
        assert {f"pocketllm/{path.relative_to(ROOT)}" for path in (ROOT / room).rglob("*") if path.is_file()} <= names


def test_holds_nothing_else(names: set[str]) -> None:
    kinds = (".py", ".txt", "py.typed", ".service", ".sh", "/run", "/finish", ".html", ".js", ".css")
    strange = {n for n in names if not n.startswith("pocketllm/") or not n.endswith(kinds)}
    assert not strange
