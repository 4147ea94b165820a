"""The real daemon process on a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

T = TypeVar("T")
Document = dict[str, Any]

#: Generous: a busy machine takes ten times as long as an idle one to import torch.
DEADLINE_SECONDS = 90.0
LOOK_SECONDS = 0.02


def eventually(look: Callable[[], T | None], what: str, *, seconds: float = DEADLINE_SECONDS) -> T:
    """The first truthy thing that `look` gives; fails the test when there is none before the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
    return found


def environment(folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without any PocketLLM settings but the given ones (`TRAINING__STEPS` and so on)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POCKETLLM_")}
    # A machine that runs tests may be a laptop on its battery.
    given = {
        "CONFIG": str(folder / "config.toml"),
        "GATE__REQUIRE_POWER": "false",
        "GATE__REQUIRE_IDLE": "false",
        "IDLE_TICK_SECONDS": "0.5",
        **settings,
    }
    return clean | {f"POCKETLLM_{name}": value for name, value in given.items()} | {"HF_HUB_OFFLINE": "1"}


ANY_PORT = ("--port", "0")


def command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """What starts a daemon."""
    return [sys.executable, "-m", "pocketllm", "serve", "--data-dir", str(folder), *arguments]


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A running daemon. `client` sends the token, `stranger` doesn't."""

    process: subprocess.Popen[bytes]
    folder: Path
    client: httpx.Client
    stranger: httpx.Client

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    @property
    def token(self) -> str:
        """The owner's."""
        return str(json.loads((self.folder / "tokens.json").read_text())["owner"])

    def app_token(self, name: str, *scopes: str) -> str:
        """A new one of an app's."""
        return str(self.client.post("/tokens", json={"name": name, "scopes": scopes}).json()["token"])

    @property
    def log(self) -> str:
        """What it has written so far."""
        return log_file(self.folder).read_text(errors="replace")

    def status(self) -> Document:
        document: Document = self.client.get("/status").json()
        return document

    def job(self, job_id: str) -> Document:
        document: Document = self.client.get(f"/jobs/{job_id}").json()
        return document

    def start_job(self, **requested: Any) -> str:
        """Ask for a job; its id."""
        response = self.client.post("/jobs", json=requested)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def wait_for_job(self, job_id: str, state: str) -> Document:
        """The job, once it is in this state; fails when it ends in another."""

        def look() -> Document | None:
            job = self.job(job_id)
            assert job["state"] in (state, "queued", "running", "paused"), job
            return job if job["state"] == state else None

        return eventually(look, f"job {job_id} {state}")

    def wait_for_step(self, job_id: str) -> int:
        """The worker's process id, once it has made a step of the job."""
        eventually(lambda: self.job(job_id)["step"] >= 1, f"a step of {job_id}")
        return int(self.status()["worker"]["pid"])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)


def log_file(folder: Path) -> Path:
    """Where a running daemon's output goes."""
    return folder / "test-daemon.log"


@contextmanager
def running(folder: Path, *, arguments: Sequence[str] = ANY_PORT, **settings: str) -> Iterator[Daemon]:
    """Start the real daemon on a folder and stop it, and whatever it started, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with log_file(folder).open("ab") as log:
        process = subprocess.Popen(
            command(folder, arguments),
            env=environment(folder, settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url, token = eventually(lambda: _address(process, folder), "the daemon's start")
        with (
            httpx.Client(
                base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=DEADLINE_SECONDS
            ) as client,
            httpx.Client(base_url=url, timeout=DEADLINE_SECONDS) as stranger,
        ):
            yield Daemon(process=process, folder=folder, client=client, stranger=stranger)
    finally:
        _stop(process)


def _address(process: subprocess.Popen[bytes], folder: Path) -> tuple[str, str] | None:
    """The address and token, once the daemon answers there."""
    assert process.poll() is None, f"ended with {process.returncode}:\n{log_file(folder).read_text()}"
    try:
        url = json.loads((folder / "daemon.json").read_text())["url"]
        # A file that a killed daemon left behind leads nowhere, or to somebody else.
        if httpx.get(f"{url}/health").json()["pid"] != process.pid:
            return None
        return url, json.loads((folder / "tokens.json").read_text())["owner"]
    except (FileNotFoundError, httpx.HTTPError):
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the daemon: ask, wait, kill. Its children's pids are taken before, so that none can get away."""
    started = children(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    process.kill()
    process.wait()
    for pid in started:
        if is_running(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def refused_start(folder: Path, *, arguments: Sequence[str] = ANY_PORT, code: int = 1, **settings: str) -> str:
    """Start a daemon that must refuse to: this exit code and one clear sentence, which is returned."""
    ended = subprocess.run(
        command(folder, arguments),
        env=environment(folder, settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        text=True,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == code, said
    assert "Traceback" not in said and said.startswith("Error: ") and said.count("\n") == 1, said
    return said


def children(pid: int) -> list[int]:
    """The running children of a process."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += [int(child) for child in listing.read_text().split()]
    return [child for child in found if is_running(child)]


def is_running(pid: int) -> bool:
    """Whether the process is there and not just waiting to be buried by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
