"""Half an hour of a busy phone: clients, jobs, answers, deletions, kills and a charger that comes and goes.

The daemon itself is not killed, since what grows in it is what is measured: its memory, file descriptors and threads
in the last quarter of the time, beside those in the second one. Workers and generators are killed as they run.
Nothing that was acknowledged may be lost, and in the end every job must have come to its end.
"""

import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx

from bench.common.child import memory_of
from bench.common.harness import Limit
from bench.common.world import SEED, until
from tests.support.stress.report import Report
from tests.support.stress.world import Charger, World, posting

LIMITS = {
    "lost": Limit(at_most=0, always=True),
    "stuck_jobs": Limit(at_most=0, always=True),
    "errors_5xx": Limit(at_most=0, always=True),
    "memory_growth_mb": Limit(at_most=10),
    "descriptors_growth": Limit(at_most=4),
    "threads_growth": Limit(at_most=4),
}
FULL_SECONDS, SMALL_SECONDS = 1800.0, 20.0
#: Texts stay some time, so that the database grows and shrinks.
DELETED_AFTER = 2000


@dataclass(kw_only=True)
class Owner:
    """Asks for jobs and answers, deletes texts, kills processes and pulls the charger, in a random order."""

    world: World
    charger: Charger
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    counts: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)  #: of jobs, when their workers were killed

    def act(self) -> None:
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
        self.charger.plug(self.rng.random() < 0.7)

    def delete(self) -> None:
        page = self.world.call("GET", "/texts?limit=500")["data"]
        if self.world.call("GET", "/status")["texts"]["count"] > DELETED_AFTER:
            for text in page[-20:]:
                self.world.call("DELETE", f"/texts/{text['id']}")
                self.deleted.add(text["text"])

    def watch(self) -> None:
        """Read the pages that a dashboard reads."""
        newest = self.world.call("GET", "/jobs")["data"][:1]
        for path in (*(f"/jobs/{job['id']}" for job in newest), "/adapters"):
            self.world.call("GET", path)


def used_by(pid: int) -> tuple[float, int, int]:
    """What a process uses: memory in MB, file descriptors, threads."""
    files, threads = (len(list(Path(f"/proc/{pid}/{which}").iterdir())) for which in ("fd", "task"))
    return memory_of(pid)["VmRSS"] / 1e6, files, threads


def growth(values: Sequence[float]) -> float:
    """The median of the last quarter less that of the second."""
    quarter = max(1, len(values) // 4)
    return median(values[-quarter:]) - median(values[quarter : 2 * quarter] or values)


def test_nothing_grows_and_nothing_is_lost(world: World, report: Report, tmp_path: Path) -> None:
    seconds = FULL_SECONDS if report.full else SMALL_SECONDS
    owner = Owner(world=world, charger=Charger(tmp_path / "power_supply"))
    world.epochs = 2
    world.configure(POWER_SUPPLIES=str(owner.charger.folder), GATE__REQUIRE_POWER="true")
    world.start()
    world.upload()
    samples, ends = list[tuple[float, int, int]](), time.monotonic() + seconds
    with posting(world, pause=0.05) as acknowledged:
        while time.monotonic() < ends:
            owner.act()
            samples.append(used_by(world.pid))
            time.sleep(owner.rng.uniform(0.2, 2.0))
    memory, descriptors, threads = zip(*samples, strict=True)
    owner.charger.plug(True)
    until(lambda: not world.open_jobs(), "the end of all jobs")
    jobs = world.query("SELECT state, count(*) FROM job GROUP BY state")
    there = {row[0] for row in world.query("SELECT text FROM text WHERE source LIKE 'client %'")}
    report.values = {
        "lost": float(len(acknowledged - there - owner.deleted)),
        "stuck_jobs": float(sum(count for state, count in jobs if state == "failed")),
        "errors_5xx": float(len(owner.errors)),
        "memory_growth_mb": growth(memory),
        "descriptors_growth": growth(descriptors),
        "threads_growth": growth(threads),
        "memory_mb": median(memory),
        "acknowledged": float(len(acknowledged)),
        "jobs": float(sum(count for _, count in jobs)),
        "kills": float(owner.counts.get("kill", 0)),
    }
    report.raw = {"samples": samples, "errors": owner.errors, "jobs": jobs, "counts": owner.counts}
    report.end()
