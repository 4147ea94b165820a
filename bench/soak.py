"""Hours of a busy phone in one run: clients, jobs, answers, deletions, kills and a charger that comes and goes.

python -m bench.soak [--minutes 30] [--quick]

The daemon itself is not killed, since what grows in it is what is measured: its memory, file descriptors and threads
in the last quarter of the time, beside those in the second one. Workers and generators are killed as they run.
Nothing that was acknowledged may be lost, and in the end every job must have come to its end.
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
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import httpx

from bench.child import memory_of
from bench.crash import posting
from bench.harness import Limit, finish, parser, progress, start, table
from bench.pause import Charger
from bench.shapes import ensure, models_folder
from bench.world import SEED, World, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMITS = {
    "lost": Limit(at_most=0, always=True),
    "stuck_jobs": Limit(at_most=0, always=True),
    "errors_5xx": Limit(at_most=0, always=True),
    "memory_growth_mb": Limit(at_most=10),
    "descriptors_growth": Limit(at_most=4),
    "threads_growth": Limit(at_most=4),
}
_QUICK_SECONDS, _BETWEEN_SECONDS = 20.0, (0.2, 2.0)
#: Texts stay some time, so that the database grows and shrinks.
_DELETED_AFTER = 2000


@dataclass(kw_only=True)
class Samples:
    """What the daemon used, over the time."""

    memory: list[float] = field(default_factory=list)  #: MB
    descriptors: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)

    def take(self, pid: int) -> None:
        """Add what it uses now."""
        self.memory.append(memory_of(pid)["VmRSS"] / 1e6)
        self.descriptors.append(float(len(list(Path(f"/proc/{pid}/fd").iterdir()))))
        self.threads.append(float(len(list(Path(f"/proc/{pid}/task").iterdir()))))

    def growth(self) -> dict[str, float]:
        """The medians of the last quarter less those of the second."""
        quarter = max(1, len(self.memory) // 4)
        return {
            name: median(values[-quarter:]) - median(values[quarter : 2 * quarter] or values)
            for name, values in vars(self).items()
        }


@dataclass(kw_only=True)
class Owner:
    """Asks for jobs and answers, deletes texts, kills processes and pulls the charger, in a random order."""

    world: World
    charger: Charger
    rng: random.Random
    counts: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)  #: of jobs, when their workers were killed

    def act(self) -> None:
        """Do one thing."""
        action = self.rng.choice([self.ask, self.answer, self.kill, self.pull, self.delete, self.watch])
        self.counts[action.__name__] = self.counts.get(action.__name__, 0) + 1
        try:
            action()
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error and error.response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                self.errors.append(f"{action.__name__}: {error.response.text[:200]}")
        except httpx.HTTPError as error:
            self.errors.append(f"{action.__name__}: {type(error).__name__}")

    def ask(self) -> None:
        """Ask for a job, when none is open."""
        if not self.world.open_jobs():
            self.world.ask_for_job()

    def answer(self) -> None:
        """Ask for some words."""
        self.world.call("POST", "/generate", {"prompt": "Wind", "max_tokens": 8})

    def kill(self) -> None:
        """Kill the generator, or a worker that has made a step: a job whose workers die without one is given up."""
        status = self.world.call("GET", "/status")
        pids = {status["generator"]["pid"]}
        for job in self.world.open_jobs():
            if job["state"] == "running" and job["step"] > self.steps.get(job["id"], 0):
                self.steps[job["id"]] = job["step"]
                pids.add(status["worker"]["pid"])
        for pid in pids - {None}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pull(self) -> None:
        """Pull the charger, or put it in."""
        self.charger.plug(self.rng.random() < 0.7)

    def delete(self) -> None:
        """Delete old texts."""
        page = self.world.call("GET", "/texts?limit=500")["data"]
        if self.world.call("GET", "/status")["texts"]["count"] > _DELETED_AFTER:
            for text in page[-20:]:
                self.world.call("DELETE", f"/texts/{text['id']}")
                self.deleted.add(text["text"])

    def watch(self) -> None:
        """Read the pages that a dashboard reads."""
        newest = self.world.call("GET", "/jobs")["data"][:1]
        for path in (*(f"/jobs/{job['id']}" for job in newest), "/adapters", "/events?wait=0"):
            self.world.call("GET", path)


@contextmanager
def sampling(pid: int, seconds: float) -> Iterator[Samples]:
    """Take samples meanwhile, sixty in all."""
    samples, ending = Samples(), threading.Event()

    def run() -> None:
        while not ending.wait(seconds / 60):
            with suppress(OSError):
                samples.take(pid)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield samples
    finally:
        ending.set()
        thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    seconds = _QUICK_SECONDS if options.quick else 60 * options.minutes
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny", "bfloat16").absolute()
        charger = Charger(Path(scratch) / "power_supply")
        world = World(folder=Path(scratch) / "data", model=model, port=free_port(), epochs=2)
        world.environment = {
            "POCKETLLM_POWER_SUPPLIES": str(charger.folder),
            "POCKETLLM_GATE__REQUIRE_POWER": "true",
        }
        owner = Owner(world=world, charger=charger, rng=random.Random(SEED))
        try:
            world.start()
            world.upload()
            assert world.process is not None
            ends = time.monotonic() + seconds
            with sampling(world.process.pid, seconds) as samples, posting(world, pause=0.05) as posters:
                said = time.monotonic()
                while time.monotonic() < ends:
                    owner.act()
                    time.sleep(owner.rng.uniform(*_BETWEEN_SECONDS))
                    if time.monotonic() - said > 60:
                        said = time.monotonic()
                        progress(f"{(ends - said) / 60:.0f} minutes left: {owner.counts}")
            charger.plug(True)
            until(lambda: not world.open_jobs(), "the end of all jobs")
            jobs = world.query("SELECT state, count(*) FROM job GROUP BY state")
            there = {row[0] for row in world.query("SELECT text FROM text WHERE source LIKE 'client %'")}
        finally:
            world.stop()
    acknowledged = {text for poster in posters for text in poster.acknowledged}
    growth = samples.growth()
    values: dict[str, float | None] = {
        "lost": float(len(acknowledged - there - owner.deleted)),
        "stuck_jobs": float(sum(count for state, count in jobs if state == "failed")),
        "errors_5xx": float(len(owner.errors)),
        "memory_growth_mb": growth["memory"],
        "descriptors_growth": growth["descriptors"],
        "threads_growth": growth["threads"],
        "memory_mb": median(samples.memory),
        "acknowledged": float(len(acknowledged)),
        "jobs": float(sum(count for _, count in jobs)),
        "kills": float(owner.counts.get("kill", 0)),
    }
    rows = [[name, f"{value:.3g}"] for name, value in values.items() if value is not None]
    caption = f"{seconds / 60:g} minutes; {', '.join(f'{count} x {name}' for name, count in owner.counts.items())}."
    raw = {"samples": vars(samples), "errors": owner.errors, "jobs": jobs, "counts": owner.counts}
    shown = table("The soak", ["value", ""], rows, caption=caption)
    return finish("soak", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.soak", "Hours of a busy phone in one run.")
    made.add_argument("--minutes", type=float, default=30.0)
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
