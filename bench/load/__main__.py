"""The daemon under load while it trains, and how fast it writes: against a bare endpoint and transformers' `generate`.

python -m bench.load [--rounds 3] [--seconds 10] [--quick]

32 clients load the real daemon, whose real job trains on SmolLM2, and in turns with it a bare endpoint (bare.py) while
the same job goes on. At the end the daemon is killed in the middle of it and started again: every text that was ever
acknowledged must be there. Then, without a job, decode.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.common.harness import Limit, finish, parser, progress, start, table
from bench.common.shapes import SMOLLM2, ensure, models_folder
from bench.common.world import daemon_on, until
from bench.load.bare import running_bare
from bench.load.clients import CLIENTS, Report, load, loading, quantile, reported
from bench.load.decode import DTYPES, LLAMA_SERVER, LLAMACPP, TRANSFORMERS, Decoding, measure
from pocketllm.cli.demo import sample_notes
from pocketllm.daemon.processes import cpu_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from pocketllm.client import Client

LIMITS = {
    "ingest_over_bare": Limit(at_least=0.5),
    "jobs_p99_over_idle_p50": Limit(at_most=5),
    "errors_5xx": Limit(at_most=0, always=True),
    "lost": Limit(at_most=0, always=True),
    "decode_over_transformers": Limit(at_least=1),
    "llamacpp_over_transformers": Limit(at_least=2, where_measurable=True),
}
#: Under load, so many of a client's requests are one GET /jobs and else texts.
ASK_EVERY = 20
#: At a steady pace, each client sends a request a second, and every fourth is GET /jobs.
PACED = {"pace_seconds": 1.0, "ask_every": 4}
#: One client at ease.
AT_EASE = {"clients": 1, "ask_every": 1, "pace_seconds": 0.05}
_MANY_STEPS = 1_000_000
#: How often the daemon looks by default.
_SETTINGS = {"TICK_SECONDS": "2", "IDLE_TICK_SECONDS": "15"}
_QUICK_SETTINGS = {"TRAINING__METHOD": "mezo", "TRAINING__PROBES": "1"}
_LOOK_SECONDS = 0.05

#: What came of a turn of the clients, and the processors' seconds that the job got meanwhile.
Turn = tuple[Report, float]


class Job:
    """The job that trains while the clients are at it. It is asked for anew should it end."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._id = self._ask()

    def hold(self) -> None:
        """Let it wait, listed as it is, so that the daemon idles."""
        self._client.post("jobs", self._id, "pause")
        until(lambda: not self._worker()["running"], "the worker's end", between_seconds=_LOOK_SECONDS)

    def release(self) -> None:
        """Let it go on."""
        self._client.post("jobs", self._id, "resume")

    def training(self) -> int:
        """The worker's process id, once it makes steps."""
        before = self._step()
        until(lambda: self._step() > before, "a step of the job", between_seconds=_LOOK_SECONDS)
        pid = self._worker()["pid"]
        if pid is None:  # it has ended with that step
            return self.training()
        return int(pid)

    def _worker(self) -> dict[str, Any]:
        worker: dict[str, Any] = self._client.get("status")["worker"]
        return worker

    def _step(self) -> int:
        job = self._client.get("jobs", self._id)
        if job["state"] == "failed":
            raise SystemExit(f"The job failed: {job['error']}")
        if job["state"] == "succeeded":
            self._id = self._ask()
            return 0
        return int(job["step"])

    def _ask(self) -> str:
        return str(self._client.post("jobs", body={"steps": _MANY_STEPS, "seed": 1})["id"])


def under_load(job: Job, **plan: Any) -> Turn:
    """Let the clients load a server while the job trains. plan: see `bench.load.clients.run`."""
    pid = job.training()
    before = cpu_seconds(pid) or 0.0
    report = load(**plan)
    return report, max(0.0, (cpu_seconds(pid) or 0.0) - before)


def kill_under_load(client: Client, job: Job, *, seconds: float, **plan: Any) -> Report:
    """End the daemon as `kill -9` does while the clients are at it: their report up to then."""
    job.training()
    pid = int(client.get("health")["pid"])
    with loading(seconds=seconds, **plan) as clients:
        time.sleep(seconds / 2)
        os.kill(pid, signal.SIGKILL)
        return reported(clients)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the clients have seen. All but `idle` while a job trained."""

    idle: Report  #: one client at ease, no worker
    daemon: list[Turn]
    bare: list[Turn]
    paced: Turn
    killed: Report
    kept: set[str]  #: ids in the daemon that was started again

    @property
    def acknowledged(self) -> set[str]:
        """All ids that any client was given."""
        reports = [*(report for report, _ in (*self.daemon, self.paced)), self.killed]
        return {identity for report in reports for identity in report.ids()}

    def values(self) -> dict[str, float | None]:
        """The figures."""
        at_ease = quantile(self.idle.asks, 0.5)
        asks = [seconds for report, _ in self.daemon for seconds in report.asks]
        ratios = [ours.rate / theirs.rate for (ours, _), (theirs, _) in zip(self.daemon, self.bare, strict=True)]
        answered = [self.idle, *(report for report, _ in (*self.daemon, self.paced))]
        # Of the daemon that was killed, answers that say so count; those that did not come are its death.
        errors = sum(report.errors for report in answered) + self.killed.errors - self.killed.broken
        return {
            "ingest_over_bare": median(ratios),
            "jobs_p99_over_idle_p50": quantile(asks, 0.99) / at_ease,
            "jobs_p99_over_idle_p50_paced": quantile(self.paced[0].asks, 0.99) / at_ease,
            "errors_5xx": float(errors),
            "lost": float(len(self.acknowledged - self.kept)),
        }

    def raw(self) -> dict[str, Any]:
        """Everything, but for the texts."""

        def of(turn: Turn) -> dict[str, Any]:
            return turn[0].figures() | {"worker_cpu_seconds": turn[1]}

        return {
            "idle": self.idle.figures(),
            "daemon": [of(turn) for turn in self.daemon],
            "bare": [of(turn) for turn in self.bare],
            "paced": of(self.paced),
            "killed": self.killed.figures(),
            "acknowledged": len(self.acknowledged),
        }


def measure_load(scratch: Path, model: Path, *, rounds: int, seconds: float, quick: bool) -> Load:
    """Load the daemon and the bare endpoint in turns, kill the daemon, and look what is there."""
    folder, settings = scratch / "data", _SETTINGS | (_QUICK_SETTINGS if quick else {})
    with running_bare(scratch / "bare.db") as bare_port, daemon_on(folder, model, **settings) as client:
        client.post("texts", body=[{"text": text, "source": "notes"} for text in sample_notes()])
        target = {"port": int(client.target.url.rpartition(":")[2]), "token": client.target.token}
        job = Job(client)
        job.training()
        job.hold()
        idle = load(label="idle", seconds=seconds if quick else 15, **AT_EASE, **target)
        progress(f"idle: GET /jobs p50 {1000 * quantile(idle.asks, 0.5):.1f} ms")
        job.release()
        daemon, bare = [], []
        for number in range(1, rounds + 1):
            daemon.append(under_load(job, label=f"daemon {number}", seconds=seconds, ask_every=ASK_EVERY, **target))
            bare.append(under_load(job, label=f"bare {number}", seconds=seconds, port=bare_port))
            progress(f"round {number}: {daemon[-1][0].rate:.0f} texts/s, bare {bare[-1][0].rate:.0f}")
        progress("at a steady pace ...")
        paced = under_load(job, label="paced", seconds=seconds, **PACED, **target)
        progress("killed ...")
        killed = kill_under_load(client, job, label="killed", seconds=seconds, **target)
    with daemon_on(folder, model, **settings) as client:
        kept = {text["id"] for text in client.pages("texts", limit=500)}
    return Load(idle=idle, daemon=daemon, bare=bare, paced=paced, killed=killed, kept=kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    quick = options.quick
    rounds, seconds = (1, 1.0) if quick else (options.rounds, options.seconds)
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny" if quick else SMOLLM2, "bfloat16").absolute()
        found = measure_load(Path(scratch), model, rounds=rounds, seconds=seconds, quick=quick)
        # The tiny model has no template for chats.
        sizes = {"rounds": 1, "tokens": 16} if quick else {"rounds": 5, "tokens": 128}
        decoding = measure(Path(scratch), model, **sizes, chats=not quick)
    values = found.values() | {
        "decode_over_transformers": decoding.over_peer(TRANSFORMERS),
        "llamacpp_over_transformers": decoding.over_peer(LLAMACPP),
        "llamacpp_over_llama_server": decoding.over_peer(LLAMACPP, LLAMA_SERVER),
        "first_token_warm_s": median(decoding.warm[decoding.used]),
        "first_token_cold_s": median(decoding.cold[decoding.used]),
    }
    raw = found.raw() | {"decoding": vars(decoding), "ask_every": ASK_EVERY}
    shown = [_load_table(found), _decode_table(decoding)]
    return finish("load", shown, values=values, limits=LIMITS, raw=raw, options=options)


def _load_table(found: Load) -> Table:
    turns: dict[str, tuple[Report, float | None]] = {"daemon, idle, one client": (found.idle, None)}
    for number, (ours, theirs) in enumerate(zip(found.daemon, found.bare, strict=True), 1):
        turns |= {f"daemon {number}": ours, f"bare {number}": theirs}
    turns["daemon, steady pace"] = found.paced
    rows = [
        [
            name,
            f"{report.rate:.0f}",
            *(f"{1000 * quantile(report.asks, share):.1f}" if report.asks else "-" for share in (0.5, 0.99)),
            f"{report.cpu_seconds / report.seconds:.2f}",
            "-" if worker is None else f"{worker / report.seconds:.2f}",
        ]
        for name, (report, worker) in turns.items()
    ]
    columns = ["turn", "texts/s", "GET /jobs p50, ms", "p99, ms", "clients' cores", "job's cores"]
    return table(f"{CLIENTS} clients while a job trains", columns, rows)


def _decode_table(decoding: Decoding) -> Table:
    rows = [
        [
            f"the daemon, {name}" if name in decoding.warm else f"transformers, {name}" if name in DTYPES else name,
            f"{median(rates):.1f}",
            *(f"{median(kind[name]):.2f}" if name in kind else "-" for kind in (decoding.warm, decoding.cold)),
        ]
        for name, rates in decoding.rates.items()
    ]
    return table("Writing", ["who", "tokens/s", "first words warm, s", "cold, s"], rows)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.load", "The daemon under load while it trains, and how fast it writes.")
    made.add_argument("--rounds", type=int, default=3, help="turns of the daemon and of the bare endpoint")
    made.add_argument("--seconds", type=float, default=10, help="of a turn")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
