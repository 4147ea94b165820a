"""The demo: its folder, its daemon, its honesty. The daemon is a process with the real application in it."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from pocketllm.child import child_environment, running_daemon
from pocketllm.cli.demo import MARKER, PROMPTS, prepare_folder, run_demo
from pocketllm.daemon.locks import locked
from pocketllm.daemon.paths import DataFolder
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.errors import CommandError
from tests.support.daemon.commands import WAIT_SECONDS, interruptible
from tests.support.daemon.served import announcement
from tests.support.paths import ROOT

SERVED = [
    *(sys.executable, "-c"),
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.support.daemon.served import main; main()",
]


class Demo:
    """Runs the demo in a folder and keeps what it printed."""

    def __init__(self, data_dir: Path, model: Path) -> None:
        self.data_dir, self.model = data_dir, model
        self.console = Console(file=io.StringIO(), width=120, markup=False, emoji=False, highlight=False)

    def run(self, acts: str) -> dict[str, Any]:
        """acts: what the job does while it is looked at; see tests.support.daemon.served."""
        return self.run_with([*SERVED, "--acts", acts])

    def run_with(self, command: list[str]) -> dict[str, Any]:
        return run_demo(self.console, data_dir=self.data_dir, install=self.install, steps=40, serve_command=command)

    def install(self, models: Path, _console: Console) -> str:
        """Link the tiny model."""
        models.mkdir(exist_ok=True)
        if not (models / "tiny").exists():
            (models / "tiny").symlink_to(self.model)
        return "tiny"

    @property
    def text(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()

    @property
    def daemon_is_gone(self) -> bool:
        # It removes the file in its last line, when it was stopped in order.
        return (self.data_dir / MARKER).exists() and not (self.data_dir / "daemon.json").exists()


@pytest.fixture
def demo(tmp_path: Path, tiny_bf16: ModelFolder) -> Demo:
    return Demo(tmp_path / "demo data", tiny_bf16.path)


def test_the_whole_way_and_the_next_steps_can_be_copied(demo: Demo) -> None:
    result = demo.run("run succeed")
    assert result["learned"] is True
    assert [answer["prompt"] for answer in result["answers"]] == list(PROMPTS)
    for part in ("sample notes", "3.5000 -> 3.2500", "40/40", "412.0 MB", "210 tok/s", "two", "Wren", "3.70"):
        assert part in demo.text
    assert demo.daemon_is_gone
    lines = [line.strip() for line in demo.text.splitlines()]
    [serve] = [shlex.split(line) for line in lines if " serve --data-dir " in line]
    assert shutil.which(serve[0])  # also where the environment is not active
    assert serve[1:] == ["serve", "--data-dir", str(demo.data_dir)]
    more = [shlex.split(line) for line in lines if line.startswith(shlex.quote(serve[0])) and "serve" not in line]
    assert [line[1] for line in more] == ["suggest", "dashboard"]
    assert all(line[-2:] == ["--data-dir", str(demo.data_dir)] for line in more)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("exact", [], marks=pytest.mark.smoke),
        pytest.param("mezo", ["--method", "mezo"], marks=pytest.mark.slow),
    ],
)
def test_the_real_demo_goes_from_nothing_to_a_report(tmp_path: Path, method: str, options: list[str]) -> None:
    command = [sys.executable, "-m", "pocketllm", "demo", "--json", "--data-dir", str(tmp_path / "demo"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["learned"] and result["job"]["method"] == method
    assert "Words that became likelier" in done.stderr, "the report"


@pytest.mark.smoke
def test_it_says_plainly_when_nothing_was_learned(demo: Demo) -> None:
    assert demo.run("run unproven")["learned"] is False
    assert "did not fall by more than noise" in demo.text
    assert demo.daemon_is_gone


@pytest.mark.smoke
def test_a_failed_job_ends_the_demo_and_the_daemon(demo: Demo) -> None:
    with pytest.raises(CommandError, match=r"The job failed: Out of memory\."):
        demo.run("run fail")
    assert demo.daemon_is_gone


def test_a_daemon_that_dies_at_the_start_shows_its_log(demo: Demo) -> None:
    with pytest.raises(CommandError, match=r"(?s)exit code 3\..*boom"):
        demo.run_with([sys.executable, "-c", "print('boom'); raise SystemExit(3)"])


def test_a_daemon_that_never_answers_is_stopped(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        pytest.raises(CommandError, match="did not answer in time"),
        running_daemon(tmp_path, sleeper, start_seconds=0.2),
    ):
        pass


def test_what_a_dead_daemon_leaves_running_is_killed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Ends at the last writer's end; the writer would live for ten minutes.
    reader = Thread(target=pipe.read_bytes, daemon=True)
    reader.start()
    code = f"import subprocess; subprocess.Popen(['sleep', '600'], stdout=open({str(pipe)!r}, 'w'))"
    with pytest.raises(CommandError, match="exit code 0"), running_daemon(tmp_path, [sys.executable, "-c", code]):
        pass
    reader.join(WAIT_SECONDS)
    assert not reader.is_alive()


@pytest.mark.smoke
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_daemon_too(tmp_path: Path, tiny_bf16: ModelFolder, number: signal.Signals) -> None:
    code = (
        "from pathlib import Path; from rich.console import Console; from pocketllm.cli.demo import run_demo\n"
        f"link = lambda models: models.mkdir() or (models / 'tiny').symlink_to({str(tiny_bf16.path)!r})\n"
        f"run_demo(Console(), data_dir=Path({str(tmp_path / 'demo')!r}), serve_command={SERVED!r}, "
        "install=lambda models, console: link(models) or 'tiny')"
    )
    child = interruptible([sys.executable, "-u", "-c", code], tmp_path)
    try:
        assert child.stdout is not None
        assert any(line.startswith("queued") for line in child.stdout)
        daemon = json.loads((tmp_path / "demo" / "daemon.json").read_text())["pid"]
        child.send_signal(number)
        child.communicate(timeout=WAIT_SECONDS)
    finally:
        child.kill()
    assert child.returncode not in (0, -signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        os.kill(daemon, 0)


def test_the_daemon_gets_none_of_the_users_settings(tmp_path: Path) -> None:
    environ = {"PATH": "/bin", "POCKETLLM_DATA_DIR": "/mine", "POCKETLLM_MODEL": "other", "POCKETLLM_CONFIG": "/mine"}
    given = child_environment(environ, tmp_path)
    assert given["PATH"] == "/bin"
    assert given["POCKETLLM_CONFIG"] == str(tmp_path / "config.toml")
    assert not {"POCKETLLM_DATA_DIR", "POCKETLLM_MODEL"} & set(given)


def test_a_foreign_folder_is_not_touched(demo: Demo) -> None:
    (demo.data_dir / "adapters").mkdir(parents=True)
    (demo.data_dir / "pocketllm.db").write_text("mine")
    with pytest.raises(CommandError, match="nothing in it was touched"):
        demo.run("")
    assert sorted(path.name for path in demo.data_dir.iterdir()) == ["adapters", "pocketllm.db"]
    assert (demo.data_dir / "pocketllm.db").read_text() == "mine"


def test_an_empty_folder_will_do_and_a_file_will_not(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    assert (tmp_path / MARKER).exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(CommandError, match="is a file"):
        prepare_folder(tmp_path / "file")


def earlier_demo(folder: Path) -> None:
    """Fill a folder as an earlier demo left it."""
    prepare_folder(folder)
    for name in ("pocketllm.db", "pocketllm.db-wal", "tokens.json", "daemon.log", "notes of the user"):
        (folder / name).write_text("{}")
    for path in (folder / "models" / "smol", folder / "adapters" / "a-1"):
        path.mkdir(parents=True)


def test_an_earlier_demo_is_cleared_but_for_its_models(demo: Demo) -> None:
    earlier_demo(demo.data_dir)
    prepare_folder(demo.data_dir)
    left = sorted(path.name for path in demo.data_dir.iterdir())
    assert left == [MARKER, "daemon.lock", "daemon.log", "models", "notes of the user"]
    assert (demo.data_dir / "models" / "smol").is_dir()


def test_a_link_is_removed_and_not_followed(demo: Demo, tmp_path: Path) -> None:
    prepare_folder(demo.data_dir)
    (tmp_path / "precious").touch()
    (demo.data_dir / "adapters").symlink_to(tmp_path)
    prepare_folder(demo.data_dir)
    assert (tmp_path / "precious").exists() and not (demo.data_dir / "adapters").exists()


def test_a_folder_that_a_daemon_uses_is_not_cleared(demo: Demo) -> None:
    earlier_demo(demo.data_dir)
    running = announcement("http://127.0.0.1:9") | {"settings": {}}
    for record, how in ((running, rf" with `kill {os.getpid()}`"), ({"pid": 77}, "")):  # what a killed one has left
        (demo.data_dir / "daemon.json").write_text(json.dumps(record))
        with (
            locked(DataFolder(demo.data_dir).daemon_lock),
            pytest.raises(CommandError, match=f"Stop it first{how}, then start the demo again"),
        ):
            prepare_folder(demo.data_dir)
    assert (demo.data_dir / "pocketllm.db").exists()
