"""Clients that load a server, in a process of their own.

A client is one connection that is kept open. It sends a request, waits for the answer, and sends the next one at once,
or at its pace. What it sends is as good as written down beforehand and what it gets is not looked at before the end, so
that two cores are left to the server and to the job: `cpu_seconds` tells what the clients themselves took.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from random import Random
from typing import Any

from bench.common.child import command
from bench.common.harness import ROOT

CLIENTS = 32
#: A text is made of so many words: a few hundred bytes.
_TEXT_WORDS = 45
#: Beyond the time that is given, the last answers may take so long.
_LAST_ANSWERS_SECONDS = 60.0


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
        return self.broken + sum(count for status, count in self.statuses.items() if status >= "500")

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
    shares = (0.5, 0.9, 0.99, 1) if seconds else ()
    return {"n": len(seconds)} | {f"p{round(100 * share)}": 1000 * quantile(seconds, share) for share in shares}


@contextmanager
def loading(**plan: Any) -> Iterator[subprocess.Popen[str]]:
    """Clients at work (see `run`); `reported` waits for them. They are ended with the block."""
    with subprocess.Popen(command(__name__, "run", **plan), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def reported(process: subprocess.Popen[str]) -> Report:
    """The report, once it is there. Raises SystemExit when the clients have failed."""
    line, _ = process.communicate()
    if process.returncode or not line:
        raise SystemExit("The clients have failed; what they say stands above.")
    return Report(**json.loads(line))


def load(**plan: Any) -> Report:
    """Let the clients load a server, and wait for the end."""
    with loading(**plan) as process:
        return reported(process)


def run(**plan: Any) -> dict[str, Any]:
    """Load the server at a `port`, with a `token`, for `seconds`; returns the fields of a Report.

    label: makes the texts different from those of others. clients: how many. ask_every: of its requests, each client
    asks GET /jobs with one in so many (None: it posts texts alone). pace_seconds: each client sends a request so often,
    whatever the others do (None: as soon as it has the last answer).
    """
    return asyncio.run(_run(**plan))


async def _run(
    port: int,
    seconds: float,
    label: str,
    token: str | None = None,
    clients: int = CLIENTS,
    ask_every: int | None = None,
    pace_seconds: float | None = None,
) -> dict[str, Any]:
    words = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8").split()
    posts, asks, acknowledged = list[float](), list[float](), list[bytes]()
    statuses, count = Counter[str](), Counter[str]()
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
    cpu, end = time.process_time(), time.perf_counter() + seconds

    async def send(body: bytes | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = _request(token, body)
        began = time.perf_counter()
        writer.write(request)
        status, answer = await _answer(reader)
        ended = time.perf_counter()
        statuses[status] += 1
        if status not in ("200", "201"):
            return
        if body is None:
            asks.append(ended - began)
            return
        posts.append(ended - began)
        acknowledged.append(answer)
        count["in time"] += ended <= end

    async def client(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rng, sent = Random(f"{label} {number}"), 0
        due = time.perf_counter() + (rng.random() * pace_seconds if pace_seconds else 0.0)
        try:
            while (now := time.perf_counter()) < end:
                if pace_seconds:
                    if due > now:
                        await asyncio.sleep(due - now)
                    due += pace_seconds
                sent += 1
                body = None
                if ask_every is None or (sent + number) % ask_every:  # clients ask at different times
                    text = f"{label} {number} {sent} {' '.join(rng.choices(words, k=_TEXT_WORDS))}."
                    body = json.dumps({"text": text, "source": "bench"}).encode()
                await send(body, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            count["broken"] += 1
        finally:
            writer.close()

    async with asyncio.timeout(seconds + _LAST_ANSWERS_SECONDS):
        await asyncio.gather(*(client(number, *both) for number, both in enumerate(connections)))
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "posts_in_time": count["in time"],
        "posts": posts,
        "asks": asks,
        "statuses": statuses,
        "broken": count["broken"],
        "acknowledged": [body.decode() for body in acknowledged],
    }


def _request(token: str | None, body: bytes | None) -> bytes:
    """POST /texts with this body; without one, GET /jobs."""
    lines = [f"{'GET /jobs' if body is None else 'POST /texts'} HTTP/1.1", "Host: 127.0.0.1"]
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
