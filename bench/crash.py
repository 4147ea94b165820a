"""Whether anything is lost when processes are killed: daemon, worker and generator, again and again, under load.

python -m bench.crash [--kills 200] [--quick]

Clients post texts and note what was acknowledged; one job after another trains, at first by exact gradients and then by
MeZO; now and then somebody generates. One process after another gets SIGKILL: half of them at a random time, and half
right when the database's log changes, which is in the middle of a write. A killed daemon is started again, as a service
manager does. In the end every acknowledged text must be there once, and every adapter must be that of a job that
nothing disturbed, byte by byte. Every third kill hits a worker before its first step, as Android's do all night.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.harness import Limit, finish, parser, progress, start, table
from bench.pause import adapter_sum
from bench.shapes import ensure, models_folder
from bench.world import EPOCHS, METHODS, SEED, World, free_port, until
from pocketllm.daemon.training.trainer import CHECKPOINT_SECONDS

LIMITS = {
    "lost": Limit(at_most=0, always=True),
    "duplicated": Limit(at_most=0, always=True),
    "steps_lost_per_kill_max": Limit(at_most=1, always=True),
    # Two checkpoints are 8 seconds apart at least, or some steps; those of the tiny model are short.
    "exact_seconds_lost_per_kill_max": Limit(at_most=2 * CHECKPOINT_SECONDS, always=True),
    "bit_equal": Limit(at_least=1, always=True),
    "integrity_ok": Limit(at_least=1, always=True),
    "stuck_jobs": Limit(at_most=0, always=True),
    "restart_s": Limit(at_most=2),
}
_CLIENTS = 4
#: Every third kill hits a worker before its first step.
_EARLY = 3
#: Every second kill comes when a worker has had the time to begin.
_BETWEEN_KILLS = ((0.3, 1.5), (2.5, 6.0))
_QUICK_EPOCHS = 2


@dataclass(kw_only=True)
class Poster:
    """Posts texts until it is told to stop, each until it is acknowledged."""

    world: World
    name: str
    ending: threading.Event
    pause: float = 0.0  #: seconds between two texts
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
            self.ending.wait(self.pause)


@contextmanager
def posting(world: World, *, pause: float = 0.0) -> Iterator[list[Poster]]:
    """Clients that post meanwhile."""
    ending = threading.Event()
    posters = [Poster(world=world, name=f"client {number}", ending=ending, pause=pause) for number in range(_CLIENTS)]
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
    # A worker seldom runs, since it waits after a kill and begins anew with the daemon.
    name = "worker" if "worker" in found and rng.random() < 0.5 else rng.choice(sorted(found))
    if name == "worker" and not makes_a_step(world):
        name = "daemon"
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


def kill_early(world: World) -> bool:
    """Kill a worker as soon as it runs, before its first step; whether there was one within two minutes."""
    ends = time.monotonic() + 120
    with suppress(httpx.HTTPError, OSError):
        for (job,) in world.query("SELECT id FROM job WHERE state = 'running'"):  # it has made some: another worker
            world.call("POST", f"/jobs/{job}/pause")
            world.call("POST", f"/jobs/{job}/resume")
    while time.monotonic() < ends:
        with suppress(httpx.HTTPError, OSError):
            if pid := victims(world).get("worker"):
                os.kill(pid, signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False


def makes_a_step(world: World) -> bool:
    """Wait a while until the running job has another step; whether it has."""
    running = world.query("SELECT id FROM job WHERE state = 'running'")
    if not running:
        return False
    job, ends = running[0][0], time.monotonic() + 15
    before = last_step(world, job)
    while last_step(world, job) <= before and time.monotonic() < ends:
        time.sleep(0.005)
    return last_step(world, job) > before


def lost_work(world: World, job: str) -> tuple[int, float]:
    """What a kill now may lose of a job: its last stored step, and seconds of the steps behind its checkpoint."""
    steps = world.query("SELECT step, seconds FROM step WHERE job_id = ?", job)
    kept = [int(file.stem) for file in (world.folder / "runs" / job).glob("*.safetensors")]
    behind = sum(seconds for step, seconds in steps if step > max(kept, default=0))
    return max((step for step, _ in steps), default=0), behind


def last_step(world: World, job: str) -> int:
    """A job's last stored step."""
    return int(world.query("SELECT coalesce(max(step), 0) FROM step WHERE job_id = ?", job)[0][0])


def sums(world: World) -> dict[str, list[str]]:
    """The checksums of all jobs' adapters, by method; a job that has none gives its state."""
    found: dict[str, list[str]] = {method: [] for method in METHODS}
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
        epochs = _QUICK_EPOCHS if options.quick else EPOCHS
        undisturbed = World(folder=Path(scratch) / "undisturbed", model=model, port=free_port(), epochs=epochs)
        world = World(folder=Path(scratch) / "disturbed", model=model, port=free_port(), epochs=epochs)
        try:
            for undisturbed.method in METHODS:
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
    rng, counts, losses = random.Random(SEED), dict.fromkeys(("daemon", "worker", "generator"), 0), Losses()
    early = 0
    with posting(world) as posters:
        for number in range(1, kills + 1):
            if number == kills // 2 + 1:
                until(lambda: not world.open_jobs(), "the end of the jobs by exact gradients")
                world.method = METHODS[1]
                world.stop()
                world.start()
            with suppress(httpx.HTTPError, OSError):
                if not world.open_jobs():
                    world.ask_for_job()
                if number % 4 == 0:
                    world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 4})
            time.sleep(rng.uniform(*_BETWEEN_KILLS[number % 2]))
            if number % _EARLY == 0 and kill_early(world):
                early += 1
                counts["worker"] += 1
            else:
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
        "bit_equal": float(all(set(found[method]) == set(expected[method]) for method in METHODS)),
        "integrity_ok": float(world.query("PRAGMA integrity_check") == [("ok",)]),
        "stuck_jobs": float(sum(":" in one for method in METHODS for one in found[method])),
        "restart_s": median(world.restarts),
        "restart_max_s": max(world.restarts),
        "acknowledged": float(len(acknowledged)),
        "jobs": float(sum(map(len, found.values()))),
        "kills_before_a_step": float(early),
    }
    return values, {"kills": counts, "sums": found, "expected": expected, "restarts": world.restarts}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.crash", "Whether anything is lost when processes are killed.")
    made.add_argument("--kills", type=int, default=200)
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
