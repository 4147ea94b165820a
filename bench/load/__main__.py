"""The daemon under load while it trains, and how fast it writes: against a bare endpoint and transformers' `generate`.

python -m bench.load [--rounds 3] [--seconds 10] [--quick]

32 clients load the real daemon, whose real job trains on SmolLM2, and in turns with it a bare endpoint
(load_bare.py) while the same job goes on. At the end the daemon is killed in the middle of it and started again:
every text that was ever acknowledged must be there. Then, without a job, load_decode.py.
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

import httpx

from bench.harness import Limit, finish, parser, progress, start, table
from bench.load.bare import running_bare
from bench.load.clients import Plan, Report, load, loading, quantile, reported
from bench.load.decode import DTYPES, LLAMA_SERVER, LLAMACPP, TRANSFORMERS, Decoding, measure
from bench.shapes import SMOLLM2, ensure, models_folder
from bench.world import daemon_on, until
from pocketllm.cli.demo import sample_notes

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
PACE_SECONDS, PACED_ASK_EVERY = 1.0, 4
#: One client at ease asks so often.
EASE_SECONDS = 0.05
_MANY_STEPS = 1_000_000
#: How often the daemon looks by default.
_SETTINGS = {"TICK_SECONDS": "2", "IDLE_TICK_SECONDS": "15"}
_QUICK_SETTINGS = {"TRAINING__METHOD": "mezo", "TRAINING__PROBES": "1"}
_LOOK_SECONDS = 0.05
_LONGEST_SECONDS = 600.0
_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much of everything."""

    rounds: int
    seconds: float  #: of a turn
    ease_seconds: float
    decode_rounds: int
    tokens: int


QUICK = Work(rounds=1, seconds=1.0, ease_seconds=1.0, decode_rounds=1, tokens=16)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of the clients, and what the job got of the processors meanwhile."""

    report: Report
    worker_cpu_seconds: float


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


def cpu_seconds(pid: int) -> float:
    """What the process has used of the processors; what is gone has used nothing any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ProcessLookupError):
        return 0.0
    return sum(int(field) for field in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def under_load(plan: Plan, job: Job) -> Turn:
    """Let the clients load a server while the job trains."""
    pid = job.training()
    before = cpu_seconds(pid)
    report = load(plan)
    return Turn(report=report, worker_cpu_seconds=max(0.0, cpu_seconds(pid) - before))


def kill_under_load(client: Client, plan: Plan, job: Job) -> Report:
    """End the daemon as `kill -9` does while the clients are at it: their report up to then."""
    job.training()
    pid = int(client.get("health")["pid"])
    with loading(plan) as clients:
        time.sleep(plan.seconds / 2)
        os.kill(pid, signal.SIGKILL)
        return reported(clients)


def stored(client: Client) -> set[str]:
    """The ids of all texts that the daemon has."""
    found: set[str] = set()
    after: dict[str, str] = {}
    headers = {"Authorization": f"Bearer {client.target.token}"}
    with httpx.Client(base_url=client.target.url, headers=headers, timeout=_LONGEST_SECONDS, trust_env=False) as http:
        while True:
            page = http.get("/texts", params={"limit": _PAGE, **after}).raise_for_status().json()
            found |= {text["id"] for text in page["data"]}
            if not page["has_more"]:
                return found
            after = {"after": page["next"]}


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
        reports = [turn.report for turn in (*self.daemon, self.paced)] + [self.killed]
        return {identity for report in reports for identity in report.ids()}

    def values(self) -> dict[str, float | None]:
        """The figures."""
        at_ease = quantile(self.idle.asks, 0.5)
        asks = [seconds for turn in self.daemon for seconds in turn.report.asks]
        ratios = [ours.report.rate / theirs.report.rate for ours, theirs in zip(self.daemon, self.bare, strict=True)]
        answered = [self.idle, *(turn.report for turn in (*self.daemon, self.paced))]
        # Of the daemon that was killed, answers that say so count; those that did not come are its death.
        errors = sum(report.errors for report in answered) + self.killed.errors - self.killed.broken
        return {
            "ingest_over_bare": median(ratios),
            "jobs_p99_over_idle_p50": quantile(asks, 0.99) / at_ease,
            "jobs_p99_over_idle_p50_paced": quantile(self.paced.report.asks, 0.99) / at_ease,
            "errors_5xx": float(errors),
            "lost": float(len(self.acknowledged - self.kept)),
        }

    def raw(self) -> dict[str, Any]:
        """Everything, but for the texts."""

        def of(turn: Turn) -> dict[str, Any]:
            return turn.report.figures() | {"worker_cpu_seconds": turn.worker_cpu_seconds}

        return {
            "idle": self.idle.figures(),
            "daemon": [of(turn) for turn in self.daemon],
            "bare": [of(turn) for turn in self.bare],
            "paced": of(self.paced),
            "killed": self.killed.figures(),
            "acknowledged": len(self.acknowledged),
        }


def measure_load(scratch: Path, model: Path, work: Work, *, quick: bool) -> Load:
    """Load the daemon and the bare endpoint in turns, kill the daemon, and look what is there."""
    folder, settings = scratch / "data", _SETTINGS | (_QUICK_SETTINGS if quick else {})
    with running_bare(scratch / "bare.db") as bare_port, daemon_on(folder, model, **settings) as client:
        client.post("texts", body=[{"text": text, "source": "notes"} for text in sample_notes()])
        port, token = int(client.target.url.rpartition(":")[2]), client.target.token

        def plan(label: str, **others: Any) -> Plan:
            return Plan(**{"port": port, "token": token, "label": label, "seconds": work.seconds, **others})

        job = Job(client)
        job.training()
        job.hold()
        ease = {"clients": 1, "ask_every": 1, "pace_seconds": EASE_SECONDS, "seconds": work.ease_seconds}
        idle = load(plan("idle", **ease))
        progress(f"idle: GET /jobs p50 {1000 * quantile(idle.asks, 0.5):.1f} ms")
        job.release()
        daemon, bare = [], []
        for number in range(1, work.rounds + 1):
            daemon.append(under_load(plan(f"daemon {number}", ask_every=ASK_EVERY), job))
            bare.append(under_load(plan(f"bare {number}", port=bare_port, token=None), job))
            progress(
                f"round {number}: {daemon[-1].report.rate:.0f} texts/s, bare {bare[-1].report.rate:.0f}; GET /jobs "
                f"p99 {1000 * quantile(daemon[-1].report.asks, 0.99):.1f} ms"
            )
        progress("at a steady pace ...")
        paced = under_load(plan("paced", pace_seconds=PACE_SECONDS, ask_every=PACED_ASK_EVERY), job)
        progress("killed ...")
        killed = kill_under_load(client, plan("killed"), job)
    with daemon_on(folder, model, **settings) as client:
        kept = stored(client)
    return Load(idle=idle, daemon=daemon, bare=bare, paced=paced, killed=killed, kept=kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    work = (
        QUICK
        if options.quick
        else Work(rounds=options.rounds, seconds=options.seconds, ease_seconds=15, decode_rounds=5, tokens=128)
    )
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny" if options.quick else SMOLLM2, "bfloat16").absolute()
        found = measure_load(Path(scratch), model, work, quick=options.quick)
        # The tiny model has no template for chats.
        decoding = measure(Path(scratch), model, rounds=work.decode_rounds, tokens=work.tokens, chats=not options.quick)
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
    turns: list[tuple[str, Report, float | None]] = [("daemon, idle, one client", found.idle, None)]
    for number, (ours, theirs) in enumerate(zip(found.daemon, found.bare, strict=True), 1):
        turns.append((f"daemon {number}", ours.report, ours.worker_cpu_seconds))
        turns.append((f"bare {number}", theirs.report, theirs.worker_cpu_seconds))
    turns.append(("daemon, steady pace", found.paced.report, found.paced.worker_cpu_seconds))
    rows = [
        [
            name,
            f"{report.rate:.0f}",
            *(f"{1000 * quantile(report.asks, share):.1f}" if report.asks else "-" for share in (0.5, 0.99)),
            f"{report.cpu_seconds / report.seconds:.2f}",
            "-" if worker is None else f"{worker / report.seconds:.2f}",
        ]
        for name, report, worker in turns
    ]
    return table(
        f"{Plan.clients} clients while a job trains",
        ["turn", "texts/s", "GET /jobs p50, ms", "p99, ms", "clients' cores", "job's cores"],
        rows,
        caption=f"One request in {ASK_EVERY} to the daemon is GET /jobs, the others are texts; the bare endpoint gets "
        f"texts alone. {len(found.acknowledged)} texts were acknowledged, the last of them before kill -9.",
    )


def _decode_table(decoding: Decoding) -> Table:
    rows = [
        [
            f"the daemon, {name}" if name in decoding.warm else f"transformers, {name}" if name in DTYPES else name,
            f"{median(rates):.1f}",
            *(f"{median(kind[name]):.2f}" if name in kind else "-" for kind in (decoding.warm, decoding.cold)),
        ]
        for name, rates in decoding.rates.items()
    ]
    return table(
        "Writing",
        ["who", "tokens/s", "first words warm, s", "cold, s"],
        rows,
        caption="All with an adapter. The daemon's llama.cpp and llama-server by itself read the GGUF file that was "
        "imported (SmolLM2: Q4_1); transformers' weights are in the dtype that is named, of which the faster is the "
        f"peer here: {decoding.peer}. Cold: the generator has to be started; its weights are in the page cache.",
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.load", "The daemon under load while it trains, and how fast it writes.")
    made.add_argument("--rounds", type=int, default=3, help="turns of the daemon and of the bare endpoint")
    made.add_argument("--seconds", type=float, default=10, help="of a turn")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
