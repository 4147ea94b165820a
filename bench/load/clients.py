"""Clients that load a server: a process of its own, told what to do by a line of JSON, and answering with one.

python -m bench.load.clients < plan

A client is one connection that is kept open. It sends a request, waits for the answer, and sends the next one at once,
or at its pace. What it sends is as good as written down beforehand and what it gets is not looked at before the end, so
that two cores are left to the server and to the job: `cpu_seconds` tells what the clients themselves took.
"""

from __future__ import annotations

import asyncio
import json
import math
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from random import Random
from typing import Any

from bench.child import write_line
from bench.harness import ROOT

#: A text is made of so many words: a few hundred bytes.
_TEXT_WORDS = 45
#: Beyond the time that a plan gives, the last answers may take so long.
_LAST_ANSWERS_SECONDS = 60.0
_SERVER_ERROR = 500


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the clients do."""

    port: int
    seconds: float
    label: str  #: makes the texts different from those of other plans
    token: str | None = None
    clients: int = 32
    #: Of its requests, each client asks GET /jobs with one in so many; None: it posts texts alone.
    ask_every: int | None = None
    #: Each client sends a request so often, whatever the others do; None: as soon as it has the last answer.
    pace_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it. Latencies are in seconds, of answers that were as they should be."""

    seconds: float
    cpu_seconds: float  #: of the clients' own process, meanwhile
    posts_in_time: int  #: acknowledged before the time was over
    posts: list[float]
    asks: list[float]
    statuses: dict[str, int]  #: of all answers
    broken: int  #: requests that got no answer
    acknowledged: list[str] = field(repr=False)  #: the bodies of answers to posts

    @property
    def rate(self) -> float:
        """Acknowledged texts a second."""
        return self.posts_in_time / self.seconds

    @property
    def errors(self) -> int:
        """How many answers were the server's failures, and how many did not come at all."""
        return self.broken + sum(count for status, count in self.statuses.items() if int(status) >= _SERVER_ERROR)

    def ids(self) -> list[str]:
        """The ids of the acknowledged texts."""
        return [str(identity) for body in self.acknowledged for identity in json.loads(body)["ids"]]

    def figures(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "texts_a_second": self.rate,
            "posts_ms": spread(self.posts),
            "jobs_ms": spread(self.asks),
            "statuses": self.statuses,
            "broken": self.broken,
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """How many, and their quantiles in milliseconds."""
    if not seconds:
        return {"n": 0}
    found = {f"p{round(100 * share)}": 1000 * quantile(seconds, share) for share in (0.5, 0.9, 0.99, 1)}
    return {"n": len(seconds), **found}


@contextmanager
def loading(plan: Plan) -> Iterator[subprocess.Popen[str]]:
    """Clients at work; `reported` waits for them. They are ended with the block."""
    command = [sys.executable, "-m", "bench.load.clients"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(plan)))
        process.stdin.close()
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def reported(process: subprocess.Popen[str]) -> Report:
    """The report, once it is there. Raises SystemExit when the clients have failed."""
    assert process.stdout is not None
    line = process.stdout.read()
    if process.wait() != 0 or not line:
        raise SystemExit("The clients have failed; what they say stands above.")
    return Report(**json.loads(line))


def load(plan: Plan) -> Report:
    """Let the clients do what the plan says, and wait for the end."""
    with loading(plan) as process:
        return reported(process)


class _Run:
    """All clients of a plan, and what they note."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._words = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8").split()
        self._statuses: Counter[str] = Counter()
        self._posts: list[float] = []
        self._asks: list[float] = []
        self._acknowledged: list[bytes] = []
        self._in_time = self._broken = 0
        self._end = 0.0

    async def report(self) -> Report:
        """Connect, send until the time is over, and tell."""
        connections = [await asyncio.open_connection("127.0.0.1", self._plan.port) for _ in range(self._plan.clients)]
        cpu, began = _cpu_seconds(), time.perf_counter()
        self._end = began + self._plan.seconds
        async with asyncio.timeout(self._plan.seconds + _LAST_ANSWERS_SECONDS):
            await asyncio.gather(*(self._client(number, *both) for number, both in enumerate(connections)))
        cpu = _cpu_seconds() - cpu
        return Report(
            seconds=self._plan.seconds,
            cpu_seconds=cpu,
            posts_in_time=self._in_time,
            posts=self._posts,
            asks=self._asks,
            statuses=dict(self._statuses),
            broken=self._broken,
            acknowledged=[body.decode() for body in self._acknowledged],
        )

    async def _client(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plan, rng, sent = self._plan, Random(f"{self._plan.label} {number}"), 0
        due = time.perf_counter() + (rng.random() * plan.pace_seconds if plan.pace_seconds else 0.0)
        try:
            while (now := time.perf_counter()) < self._end:
                if plan.pace_seconds:
                    if due > now:
                        await asyncio.sleep(due - now)
                    due += plan.pace_seconds
                sent += 1
                # Clients ask at different times.
                asks = plan.ask_every is not None and (sent + number) % plan.ask_every == 0
                await self._one(asks, f"{plan.label} {number} {sent}", rng, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            self._broken += 1
        finally:
            writer.close()

    async def _one(
        self, asks: bool, name: str, rng: Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = _request("GET", "/jobs", self._plan.token) if asks else self._post(name, rng)
        began = time.perf_counter()
        writer.write(request)
        status, body = await _answer(reader)
        ended = time.perf_counter()
        self._statuses[status] += 1
        if status not in ("200", "201"):
            return
        if asks:
            self._asks.append(ended - began)
            return
        self._posts.append(ended - began)
        self._acknowledged.append(body)
        self._in_time += ended <= self._end

    def _post(self, name: str, rng: Random) -> bytes:
        text = f"{name} {' '.join(rng.choices(self._words, k=_TEXT_WORDS))}."
        body = json.dumps({"text": text, "source": "bench"}).encode()
        return _request("POST", "/texts", self._plan.token, body)


def _request(method: str, path: str, token: str | None, body: bytes | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def _answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Status and body of an answer that says its length, as both servers' do."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"content-length:")
    return head[9:12].decode(), await reader.readexactly(int(rest.partition(b"\r\n")[0]))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Load a server by the plan on stdin."""
    plan = Plan(**json.load(sys.stdin))
    write_line(asdict(asyncio.run(_Run(plan).report())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
