"""Running commands in tests, in an environment in which one folder alone says where the daemon is."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from typer.testing import CliRunner, Result

from pocketllm.cli.main import app

#: For a child process on a slow machine; nothing waits this long when all is well.
WAIT_SECONDS = 60


class Run:
    """Runs commands on one data folder: `run("add", "-", stdin="words")`."""

    def __init__(self, data_dir: Path) -> None:
        self._runner = CliRunner(env=environment(data_dir))

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        return self._runner.invoke(app, list(arguments), input=stdin)

    def said(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """What a command that succeeds prints."""
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """The document that a command that succeeds prints with `--json`."""
        return json.loads(self.said(*arguments, "--json"))

    def refused(self, *arguments: str, code: int = 1) -> str:
        """What a command that ends with this exit code says on stderr; there is nothing on stdout."""
        result = self(*arguments)
        assert (result.exit_code, result.stdout) == (code, ""), result.stderr
        return result.stderr


def commands(data_dir: Path) -> Run:
    """Return what runs commands on this data folder."""
    return Run(data_dir)


def environment(data_dir: Path) -> dict[str, str | None]:
    """Return an environment in which nothing but this folder says where the daemon is."""
    return {"POCKETLLM_DATA_DIR": str(data_dir), "POCKETLLM_URL": None, "POCKETLLM_TOKEN": None}


def child_environment(data_dir: Path) -> dict[str, str]:
    changed = {**os.environ, **environment(data_dir)}
    return {name: value for name, value in changed.items() if value is not None}


def run_process(data_dir: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own on this data folder, with these environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "pocketllm", *arguments],
        env=child_environment(data_dir) | variables,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


def interruptible(command: list[str], data_dir: Path) -> subprocess.Popen[str]:
    """Start a process on this data folder that Ctrl-C ends, even where a shell started the tests with it ignored."""
    return subprocess.Popen(
        command,
        env=child_environment(data_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Children inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def handed_to_browser(data_dir: Path) -> str:
    """Run `pocketllm dashboard` on this folder by its relative path; the address that it hands to the browser."""
    child = run_process(data_dir, "dashboard", "--data-dir", os.path.relpath(data_dir), BROWSER="echo %s")
    assert child.returncode == 0, child.stderr
    return child.stdout.partition("\n")[0]


def terminal() -> Console:
    """Return a console that takes itself for a terminal; `output` gives what it showed."""
    return Console(file=io.StringIO(), force_terminal=True, width=100, markup=False, highlight=False)


def output(console: Console) -> str:
    """Return what was printed to a console that writes into memory."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
