"""The versions that are pinned: for developers, and for phones, as pip resolves them for Android on arm64."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT

PYTHON = "3.14"
#: What termux/install.sh takes from Termux's packages, and the versions that Termux had in August 2026.
OF_TERMUX = {"torch": "2.11.0", "numpy": "2.4.4", "greenlet": "3.5.5", "tokenizers": "0.23.1", "hf-xet": "1.6.0"}
#: What no wheel fits. Each costs the phone's owner minutes: think twice before one comes in. Of pydantic-core Termux's
#: user repository has a wheel.
COMPILED = {"ijson", "pydantic-core", "pyyaml", "regex", "safetensors"}
#: What PyPI's torch brings, and Termux's does not.
CUDA = re.compile("nvidia-|cuda-|triton")
CONSTRAINTS = ROOT / "termux/constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = PROJECT["project"]["dependencies"]


def pinned(file: Path) -> dict[str, str]:
    """The versions in a file of constraints."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in map(Requirement, lines)}


def test_each_dependency_is_pinned_to_a_version_that_it_may_have() -> None:
    of_phones, of_developers = pinned(CONSTRAINTS), pinned(ROOT / "constraints.txt")
    for needed in map(Requirement, DEPENDENCIES):
        assert needed.specifier.contains({**of_phones, **OF_TERMUX}[needed.name]), needed
    assert not of_phones.keys() & OF_TERMUX.keys(), "another version than Termux's would be compiled"
    for needed in map(Requirement, [*DEPENDENCIES, *PROJECT["dependency-groups"]["dev"]]):
        version = of_developers[needed.name]
        assert needed.specifier.contains(version) and "+" not in version, "no build of torch's in particular"


@pytest.mark.slow  # asks PyPI
def test_little_is_compiled_on_a_phone(tmp_path: Path) -> None:
    (tmp_path / "overrides.txt").write_text("".join(f"{name}; sys_platform == 'nowhere'\n" for name in OF_TERMUX))
    packages = resolved(tmp_path, "aarch64-linux-android", "--overrides", "overrides.txt")
    assert len(packages) > 30
    assert {package["name"] for package in packages if not _has_wheel(package)} == COMPILED
    installer = (ROOT / "termux/install.sh").read_text()
    assert all(name.removesuffix("-core") in installer for name in COMPILED)


@pytest.mark.slow  # asks PyPI
def test_all_that_a_phone_gets_is_pinned(tmp_path: Path) -> None:
    """With what the packages need that Termux has; torch has no wheels for Android, so it is asked for on Linux."""
    (tmp_path / "termux.txt").write_text("".join(f"{name}=={version}\n" for name, version in OF_TERMUX.items()))
    packages = resolved(tmp_path, "aarch64-unknown-linux-gnu", "--constraints", "termux.txt")
    found = {package["name"]: package["version"] for package in packages if not CUDA.match(package["name"])}
    assert found == pinned(CONSTRAINTS) | {name: version for name, version in OF_TERMUX.items() if name in found}


def resolved(folder: Path, platform: str, *options: str) -> list[dict[str, Any]]:
    """The packages that are installed on a platform."""
    (folder / "in.txt").write_text("\n".join(DEPENDENCIES))
    plan = folder / "pylock.toml"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv is not None
    command = [uv, "pip", "compile", "in.txt", *options, "--format", "pylock.toml"]
    command += ["--constraints", str(CONSTRAINTS), "--output-file", str(plan)]
    command += ["--python-version", PYTHON, "--python-platform", platform, "--no-python-downloads"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    packages: list[dict[str, Any]] = tomllib.loads(plan.read_text())["packages"]
    return packages


def _has_wheel(package: dict[str, list[dict[str, str]]]) -> bool:
    names = [wheel["url"].rsplit("/", 1)[1] for wheel in package.get("wheels", [])]
    return any(name.endswith("-none-any.whl") or "-android_" in name for name in names)
