"""Whether anything is lost when processes are killed: daemon, worker and generator, again and again, under load.

python -m bench.crash [--kills 200] [--quick]

Clients post texts and note what was acknowledged; one job after another trains, at first by exact gradients and then by
MeZO; now and then somebody generates. One process after another gets SIGKILL: half of them at a random time, and half
right when the database's log changes, which is in the middle of a write. A killed daemon is started again, as a service
manager does. In the end every acknowledged text must be there once, and every adapter must be that of a job that
nothing disturbed, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.harness import Limit, finish, parser, progress, start, table
from bench.pause import adapter_sum
from bench.shapes import ensure, models_folder

LIMITS = {
    "lost": Limit(at_most=0, always=True),
    "duplicated": Limit(at_most=0, always=True),
    "steps_lost_per_kill_max": Limit(at_most=1, always=True),
    "exact_seconds_lost_per_kill_max": Limit(at_most=10, always=True),
    "bit_equal": Limit(at_least=1, always=True),
    "integrity_ok": Limit(at_least=1, always=True),
    "stuck_jobs": Limit(at_most=0, always=True),
    "restart_s": Limit(at_most=2),
}
_CLIENTS, _SEED = 4, 7
_LONGEST_SECONDS, _LOOK_SECONDS = 900.0, 0.01
_BETWEEN_KILLS = (0.3, 1.5)
_METHODS = ("exact", "mezo")
#: A job's; early stopping may end it before.
_EPOCHS, _QUICK_EPOCHS = 20, 2


@dataclass(kw_only=True)
class World:
    """A data folder, and the daemon on it, which is started again when it was killed."""

    folder: Path
    model: Path
    port: int
    epochs: int = _EPOCHS  #: of a job
    method: str = _METHODS[0]  #: of new jobs, from the daemon's next start on
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
        token = json.loads((self.folder / "tokens.json").read_text())["owner"]
        answer = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}{path}",
            json=body,
            headers={"authorization": f"Bearer {token}"},
            timeout=seconds,
        )
        answer.raise_for_status()
        return answer.json()

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
        body = {"model": "pocketllm:base", "training_file": self.file, "seed": _SEED, "hyperparameters": parameters}
        self.call("POST", "/v1/fine_tuning/jobs", body)

    def upload(self) -> None:
        """Upload the sample notes."""
        notes = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8").split("\n\n")
        lines = [json.dumps({"text": note}) for note in notes if note.strip()]
        token = json.loads((self.folder / "tokens.json").read_text())["owner"]
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/v1/files",
            files={"file": ("notes.jsonl", "\n".join(lines).encode())},
            data={"purpose": "fine-tune"},
            headers={"authorization": f"Bearer {token}"},
        )
        answer.raise_for_status()
        self.file = str(answer.json()["id"])


@dataclass(kw_only=True)
class Poster:
    """Posts texts until it is told to stop, each until it is acknowledged."""

    world: World
    name: str
    ending: threading.Event
    acknowledged: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Post."""
        number = 0
        while not self.ending.is_set():
            text = f"{self.name} wrote text {number}"
            while not self.ending.is_set():
                try:
                    self.world.call("POST", "/texts", {"text": text, "source": self.name})
                    self.acknowledged.append(text)
                    break
                except (httpx.HTTPError, OSError):
                    time.sleep(0.05)
            number += 1


def until(look: Callable[[], Any], what: str) -> Any:
    """What `look` gives once it gives something. Raises SystemExit when it takes too long."""
    began = time.monotonic()
    while not (found := look()):
        if time.monotonic() - began > _LONGEST_SECONDS:
            raise SystemExit(f"{what}: not within {_LONGEST_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)
    return found


@contextmanager
def posting(world: World) -> Iterator[list[Poster]]:
    """Clients that post meanwhile."""
    ending = threading.Event()
    posters = [Poster(world=world, name=f"client {number}", ending=ending) for number in range(_CLIENTS)]
    threads = [threading.Thread(target=poster.run) for poster in posters]
    for thread in threads:
        thread.start()
    try:
        yield posters
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def victims(world: World) -> dict[str, int]:
    """The processes that run now, by what they are."""
    assert world.process is not None
    found = {"daemon": world.process.pid}
    with suppress(httpx.HTTPError, OSError):
        status = world.call("GET", "/status")
        for name in ("worker", "generator"):
            if status[name]["pid"]:
                found[name] = status[name]["pid"]
    return found


def at_a_write(world: World) -> None:
    """Wait until the database's log changes."""
    log = world.folder / "pocketllm.db-wal"
    before, ends = _changed(log), time.monotonic() + 2
    while _changed(log) == before and time.monotonic() < ends:
        pass


def _changed(log: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        about = log.stat()
        return about.st_mtime_ns, about.st_size
    return None


@dataclass(kw_only=True)
class Losses:
    """What kills of daemon and worker have lost of running jobs."""

    steps: list[int] = field(default_factory=list)  #: that were stored before and are not after
    seconds: list[float] = field(default_factory=list)  #: of exact steps behind the checkpoint, to be made again


def kill_one(world: World, rng: random.Random, losses: Losses) -> str:
    """Kill one process; returns which. A daemon is started again."""
    found = victims(world)
    name = rng.choice(sorted(found))
    if rng.random() < 0.5:
        at_a_write(world)
    running = world.query("SELECT id FROM job WHERE state = 'running'")
    before, behind = lost_work(world, running[0][0]) if running else (0, 0.0)
    with suppress(ProcessLookupError):
        os.kill(found[name], signal.SIGKILL)
    if running and name != "generator":
        losses.steps.append(max(0, before - last_step(world, running[0][0])))
        losses.seconds.append(behind if world.method == "exact" else 0.0)
    if name == "daemon":
        assert world.process is not None
        world.process.wait()
        world.start()
    return name


def lost_work(world: World, job: str) -> tuple[int, float]:
    """What a kill now may lose of a job: its last stored step, and seconds of the steps behind its checkpoint."""
    steps = world.query("SELECT step, seconds FROM step WHERE job_id = ?", job)
    kept = [int(file.name.split("-")[1].split(".")[0]) for file in (world.folder / "runs" / job).glob("*.safetensors")]
    behind = sum(seconds for step, seconds in steps if step > max(kept, default=0))
    return max((step for step, _ in steps), default=0), behind


def last_step(world: World, job: str) -> int:
    """A job's last stored step."""
    return int(world.query("SELECT coalesce(max(step), 0) FROM step WHERE job_id = ?", job)[0][0])


def sums(world: World) -> dict[str, list[str]]:
    """The checksums of all jobs' adapters, by method; a job that has none gives its state."""
    found: dict[str, list[str]] = {method: [] for method in _METHODS}
    for job in world.call("GET", "/jobs?limit=200")["data"]:
        found[job["method"]].append(
            adapter_sum(world.folder, job) if job["adapter"] else f"{job['state']}: {job['error']}"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    kills = 4 if options.quick else options.kills
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny", "bfloat16").absolute()
        epochs = _QUICK_EPOCHS if options.quick else _EPOCHS
        undisturbed = World(folder=Path(scratch) / "undisturbed", model=model, port=free_port(), epochs=epochs)
        world = World(folder=Path(scratch) / "disturbed", model=model, port=free_port(), epochs=epochs)
        try:
            for undisturbed.method in _METHODS:
                undisturbed.start()
                undisturbed.upload()
                undisturbed.ask_for_job()
                until(lambda: not undisturbed.open_jobs(), "the job's end")
                undisturbed.stop()
            undisturbed.start()
            expected = sums(undisturbed)
            undisturbed.stop()
            world.start()
            world.upload()
            values, raw = disturbed(world, kills, expected)
        finally:
            undisturbed.stop()
            world.stop()
    rows = [[name, f"{value:.3g}"] for name, value in values.items() if value is not None]
    caption = f"Kills: {', '.join(f'{count} of the {name}' for name, count in raw['kills'].items())}."
    shown = table(f"{kills} kills", ["value", ""], rows, caption=caption)
    return finish("crash", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def disturbed(
    world: World, kills: int, expected: dict[str, list[str]]
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Train, post and kill; what came of it."""
    rng, counts, losses = random.Random(_SEED), dict.fromkeys(("daemon", "worker", "generator"), 0), Losses()
    with posting(world) as posters:
        for number in range(1, kills + 1):
            if number == kills // 2 + 1:
                world.method = _METHODS[1]
                world.stop()
                world.start()
            with suppress(httpx.HTTPError, OSError):
                if not world.open_jobs():
                    world.ask_for_job()
                if number % 4 == 0:
                    world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
            time.sleep(rng.uniform(*_BETWEEN_KILLS))
            counts[kill_one(world, rng, losses)] += 1
            if number % 10 == 0:
                progress(f"{number} kills: {counts}")
    until(lambda: not world.open_jobs(), "the end of all jobs")
    texts = [row[0] for row in world.query("SELECT text FROM text WHERE source LIKE 'client %'")]
    acknowledged = {text for poster in posters for text in poster.acknowledged}
    found = sums(world)
    values: dict[str, float | None] = {
        "lost": float(len(acknowledged - set(texts))),
        "duplicated": float(len(texts) - len(set(texts))),
        "steps_lost_per_kill_max": float(max(losses.steps, default=0)),
        "exact_seconds_lost_per_kill_max": max(losses.seconds, default=0.0),
        "bit_equal": float(all(set(found[method]) <= set(expected[method]) for method in _METHODS)),
        "integrity_ok": float(world.query("PRAGMA integrity_check") == [("ok",)]),
        "stuck_jobs": float(sum(":" in one for method in _METHODS for one in found[method])),
        "restart_s": median(world.restarts),
        "restart_max_s": max(world.restarts),
        "acknowledged": float(len(acknowledged)),
        "jobs": float(sum(map(len, found.values()))),
    }
    return values, {"kills": counts, "sums": found, "expected": expected, "restarts": world.restarts}


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.crash", "Whether anything is lost when processes are killed.")
    made.add_argument("--kills", type=int, default=200)
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
