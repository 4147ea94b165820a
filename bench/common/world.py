"""A data folder and the real daemon on it, for benches that kill it and make its device fail."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from pocketllm.child import running_daemon

if TYPE_CHECKING:
    from pocketllm.client import Client

EPOCHS = 8  #: of a job; early stopping may end it before
METHODS = ("exact", "mezo")
SEED = 7
_LONGEST_SECONDS, _BETWEEN_SECONDS = 900.0, 0.005


def until(found: Callable[[], Any], what: str, *, between_seconds: float = _BETWEEN_SECONDS) -> float:
    """Seconds until `found` gives something, asked again and again. Raises SystemExit when it takes too long."""
    began = time.monotonic()
    while not found():
        if time.monotonic() - began > _LONGEST_SECONDS:
            raise SystemExit(f"{what}: not within {_LONGEST_SECONDS:g} s")
        time.sleep(between_seconds)
    return time.monotonic() - began


@contextmanager
def daemon_on(folder: Path, model: Path, **more: str) -> Iterator[Client]:
    """The real daemon on a data folder, with this model and more settings; jobs need not wait."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    link = folder / "models" / model.name
    if not link.exists():
        link.symlink_to(model)
    settings = {"TICK_SECONDS": "0.5", "IDLE_TICK_SECONDS": "0.5", "GATE__MINIMUM_PAUSE_SECONDS": "0"} | more
    command = [sys.executable, "-m", "pocketllm", "serve", "--model", model.name]
    with running_daemon(folder, command, settings=settings) as client:
        yield client


def as_owner(folder: Path, method: str, url: str, **request: Any) -> Any:
    """An answer to the owner of a data folder. request: see httpx.request. Raises httpx.HTTPError."""
    token = json.loads((folder / "tokens.json").read_text())["owner"]
    answer = httpx.request(method, url, headers={"authorization": f"Bearer {token}"}, **request)
    answer.raise_for_status()
    return answer.json()


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(kw_only=True)
class World:
    """A data folder, and the daemon on it, which is started again when it was killed."""

    folder: Path
    model: Path
    port: int
    epochs: int = EPOCHS  #: of a job
    method: str = METHODS[0]  #: of new jobs, from the daemon's next start on
    process: subprocess.Popen[bytes] | None = None
    file: str = ""  #: the uploaded notes
    environment: dict[str, str] = field(default_factory=dict)  #: more for the daemon
    acknowledged: list[str] = field(default_factory=list)  #: texts that must be there at the end
    restarts: list[float] = field(default_factory=list)  #: seconds from a start until it answers

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        (self.folder / "models").mkdir(parents=True, exist_ok=True)
        link = self.folder / "models" / self.model.name
        if not link.exists():
            link.symlink_to(self.model)
        began = time.monotonic()
        with (self.folder / "bench.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pocketllm", "serve", "--model", self.model.name),
                    *("--port", str(self.port), "--data-dir", str(self.folder)),
                ],
                env=os.environ | self.settings() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.answers, "the daemon's start")
        self.restarts.append(time.monotonic() - began)

    def settings(self) -> dict[str, str]:
        """The daemon's settings, as it reads them from the environment."""
        settings = {
            "CONFIG": str(self.folder / "config.toml"),
            "TICK_SECONDS": "0.2",
            "IDLE_TICK_SECONDS": "0.2",
            "GATE__REQUIRE_POWER": "false",
            "GATE__REQUIRE_IDLE": "false",
            "GATE__MINIMUM_PAUSE_SECONDS": "0",
            "GATE__DISK_START_BYTES": "0",
            "GATE__DISK_STOP_BYTES": "0",
            "TRAINING__NEW_WORDS": str(10**9),
            "TRAINING__METHOD": self.method,
        }
        return {f"POCKETLLM_{name}": value for name, value in settings.items()}

    def answers(self) -> bool:
        """Whether the daemon answers."""
        try:
            return bool(httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).is_success)
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """End the daemon in order."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    def call(self, method: str, path: str, body: Any = None, *, seconds: float = 60) -> Any:
        """An answer to the owner. Raises httpx.HTTPError."""
        return as_owner(self.folder, method, f"http://127.0.0.1:{self.port}{path}", json=body, timeout=seconds)

    def query(self, sql: str, *values: Any) -> list[Any]:
        """Read the database, past the daemon."""
        with closing(sqlite3.connect(self.folder / "pocketllm.db", timeout=30)) as database:
            return database.execute(sql, values).fetchall()

    def open_jobs(self) -> list[dict[str, Any]]:
        """The jobs that have not ended."""
        found = self.call("GET", "/jobs?limit=200")["data"]
        return [job for job in found if job["state"] in ("queued", "running", "paused")]

    def ask_for_job(self) -> None:
        """Ask for a job on the sample notes alone, from the base model on."""
        parameters = {"n_epochs": self.epochs, "batch_size": 8}
        body = {"model": "pocketllm:base", "training_file": self.file, "seed": SEED, "hyperparameters": parameters}
        self.call("POST", "/v1/fine_tuning/jobs", body | {"now": False})

    def upload(self) -> None:
        """Upload the sample notes."""
        notes = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8").split("\n\n")
        lines = [json.dumps({"text": note}) for note in notes if note.strip()]
        file = {"file": ("notes.jsonl", "\n".join(lines).encode())}
        url = f"http://127.0.0.1:{self.port}/v1/files"
        self.file = str(as_owner(self.folder, "POST", url, files=file, data={"purpose": "fine-tune"})["id"])
