"""Shell completion, as the shell asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon.commands import WAIT_SECONDS
from tests.support.paths import ROOT

PROGRAM = "import sys; sys.argv[0] = 'pocketllm'; from pocketllm.cli.main import main; main()"
VERBS = {"demo", "models", "serve", "status", "add", "import", "texts", "export", "train", "jobs", "generate", "token"}


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which `pocketllm` is a command, as an installer makes one."""
    script = tmp_path / "bin" / "pocketllm"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom pocketllm.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    root = str(ROOT)
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHONPATH": root, "HOME": str(tmp_path)}


def completed(installed: dict[str, str], *words: str) -> list[str]:
    """What bash offers behind some words: the real shell, with the script that the program gives it."""
    script = """
        eval "$(pocketllm --show-completion)"
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _pocketllm_completion pocketllm
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    child = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        env=installed,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout.split()


def test_bash_offers_the_verbs(installed: dict[str, str]) -> None:
    assert set(completed(installed, "pocketllm", "")) >= VERBS
    assert completed(installed, "pocketllm", "im") == ["import"]
    assert completed(installed, "pocketllm", "texts", "") == ["show", "delete"]
    assert completed(installed, "pocketllm", "import", "--dr") == ["--dry-run"]
    assert set(completed(installed, "pocketllm", "import", "--format", "")) >= {"notes", "mbox", "whatsapp"}


def test_it_is_installed_for_bash(installed: dict[str, str], tmp_path: Path) -> None:
    command = "pocketllm --install-completion"
    subprocess.run(["bash", "--norc", "-c", f"{command}; true"], env=installed, check=True, timeout=WAIT_SECONDS)
    (sourced,) = [line for line in (tmp_path / ".bashrc").read_text().splitlines() if line]
    assert "_pocketllm_completion" in Path(sourced.split()[-1].strip("'\"")).read_text()


def test_other_shells_get_the_verbs_too() -> None:
    for shell in ("zsh", "fish"):
        asked = {
            **os.environ,
            "_POCKETLLM_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": "pocketllm ",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        said = subprocess.run([sys.executable, "-c", PROGRAM], env=asked, capture_output=True, text=True).stdout
        assert all(verb in said for verb in VERBS), shell


def test_it_imports_nothing_heavy() -> None:
    asked = {**os.environ, "_POCKETLLM_COMPLETE": "complete_bash", "COMP_WORDS": "pocketllm jobs ", "COMP_CWORD": "2"}
    child = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", PROGRAM], env=asked, capture_output=True, text=True
    )
    assert child.stdout.split() == ["show", "cancel", "pause", "resume"]
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert "pocketllm.cli.main" in imported
    assert not imported & {"torch", "transformers", "numpy", "httpx", "fastapi", "sqlalchemy"}
