"""Shell completion, as the shell asks for it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.daemon.commands import WAIT_SECONDS
from tests.support.executables import executable
from tests.support.paths import ROOT

VERBS = {"demo", "models", "serve", "status", "add", "import", "texts", "export", "train", "jobs", "generate", "token"}


def completed(bin_folder: Path, *words: str) -> list[str]:
    """What bash offers behind some words: the real shell, with the script that the program gives it."""
    script = """
        eval "$(pocketllm --show-completion)"
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _pocketllm_completion pocketllm
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    child = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        env=os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout.split()


def test_bash_offers_the_verbs(tmp_path: Path) -> None:
    program = "import sys; sys.argv[0] = 'pocketllm'; from pocketllm.cli.main import main; main()"
    executable(tmp_path, "pocketllm", f'exec {sys.executable} -c "{program}" "$@"')
    assert set(completed(tmp_path, "pocketllm", "")) >= VERBS
    assert completed(tmp_path, "pocketllm", "texts", "") == ["show", "delete"]
    assert completed(tmp_path, "pocketllm", "import", "--dr") == ["--dry-run"]
    assert set(completed(tmp_path, "pocketllm", "import", "--format", "")) >= {"notes", "mbox", "whatsapp"}
