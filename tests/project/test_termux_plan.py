"""What pip would install on a phone: resolved for Android on arm64 and the Python that Termux has."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PYTHON = "3.14"
#: What termux/install.sh takes from Termux's packages.
OF_TERMUX = ("torch", "numpy", "greenlet", "tokenizers", "hf-xet")
#: What no wheel fits. Each costs the phone's owner minutes: think twice before one comes in. Of pydantic-core Termux's
#: user repository has a wheel.
COMPILED = {"ijson", "pydantic-core", "pyyaml", "regex", "safetensors"}


@pytest.mark.slow  # asks PyPI
def test_little_is_compiled_on_a_phone(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (tmp_path / "in.txt").write_text("\n".join(project["dependencies"]))
    (tmp_path / "overrides.txt").write_text("".join(f"{name}; sys_platform == 'nowhere'\n" for name in OF_TERMUX))
    plan = tmp_path / "pylock.toml"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv is not None
    command = [uv, "pip", "compile", "in.txt", "--overrides", "overrides.txt", "--format", "pylock.toml"]
    command += ["--constraints", str(ROOT / "termux/constraints.txt"), "--output-file", str(plan)]
    command += ["--python-version", PYTHON, "--python-platform", "aarch64-linux-android"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    packages = tomllib.loads(plan.read_text())["packages"]
    assert len(packages) > 30
    assert {package["name"] for package in packages if not _has_wheel(package)} == COMPILED
    installer = (ROOT / "termux/install.sh").read_text()
    assert all(name.removesuffix("-core") in installer for name in COMPILED)


def _has_wheel(package: dict[str, list[dict[str, str]]]) -> bool:
    names = [wheel["url"].rsplit("/", 1)[1] for wheel in package.get("wheels", [])]
    return any(name.endswith("-none-any.whl") or "-android_" in name for name in names)
