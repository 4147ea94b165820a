"""What other apps on the device can do to the owner: attacks on the real daemon while the owner asks for things.

One attack after another, each from a process of its own, twice: sockets that send a request a byte at a time, requests
whose body or answer stalls, idle sockets, an app that sends as much as it is let, and small requests that were once
costly. Meanwhile the owner asks GET /jobs with the token, each time over a new connection, in turn by TCP and by the
Unix socket; and now and then opens the page in a browser, signs in and looks at it. `refused_owner` counts the owner's
questions that got anything but their answer. `memory_growth_mb` is how much more memory the daemon has after all
attacks than it had after the first round of them, `memory_mb` the most that it ever had.
"""

import json
import multiprocessing
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx

from bench.common.child import memory_of
from bench.common.harness import Limit
from bench.load.clients import quantile
from pocketllm.api.bodies import MAX_VALUES
from tests.support.stress.report import Report
from tests.support.stress.world import World

LIMITS = {
    "owner_p99_s": Limit(at_most=0.5),
    "refused_owner": Limit(at_most=0, always=True),
    "memory_growth_mb": Limit(at_most=20),
    "memory_mb": Limit(at_most=250),
}
IDLE_SOCKETS = 1200
SIGN_IN = "/sessions/redeem"


def head(line: str, more: str) -> bytes:
    """The beginning of a request."""
    return f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}\r\n".encode()


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


#: Connections that are held: how many, what each sends at first, and then: see `hold`.
CONNECTIONS: dict[str, tuple[int, list[bytes], dict[str, Any]]] = {
    "slow_heads": (200, [b"G"], {"bit": b"G"}),
    "stalled_answers": (64, [head("GET /jobs/job-0?wait=60", "")], {}),
    "stalled_bodies": (64, [head(f"POST {SIGN_IN}", "Content-Length: 100\r\n") + b"{"], {}),
    "slow_bodies": (
        64,
        [head(f"POST {path}", "Content-Length: 1000\r\n") for path in (SIGN_IN, "/texts")],
        {"bit": b"{", "reads": True},
    ),
    "idle_sockets": (IDLE_SOCKETS, [b""], {}),
}
WORDS = [{"text": f"{number} " + "word " * 40, "source": "siege"} for number in range(100)]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 8}] * 1000
CHAT = {"messages": [{"role": "assistant", "content": "a" * 30}] * 58}
#: Bodies that are sent as fast as they are taken, and where to.
BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "greedy_app": ("/texts", lambda: as_json(WORDS)),
    "many_zeros": ("/generate", lambda: b'{"messages": [' + b"0," * 2_000_000 + b"0]}"),
    "many_numbers": (
        "/v1/completions",
        lambda: b'{"model": "pocketllm:latest", "prompt": [' + b"-1," * 300_000 + b"-1]}",
    ),
    "many_objects": ("/texts", lambda: b"[" + b"{}," * 2_600_000 + b"{}]"),
    "most_objects": ("/texts", lambda: b"[" + b"{}," * (MAX_VALUES // 2 - 1) + b"{}]"),
    "many_lists": ("/generate", lambda: b'{"prompt": [' + b"[]," * 2_600_000 + b"[]]}"),
    "many_parts": (
        "/v1/chat/completions",
        lambda: as_json({"model": "pocketllm:latest", "messages": PARTS, "stop": 0}),
    ),
    "many_chats": ("/texts", lambda: as_json([CHAT] * 1400 + [{}])),
    "many_fields": (SIGN_IN, lambda: as_json(dict.fromkeys(map(str, range(790_000)), 0))),
    "long_stop": ("/generate", lambda: as_json({"prompt": "Wind", "stop": "w" * 600_000, "max_tokens": 8})),
}


def attack(name: str, port: int, token: str, ends: float) -> None:
    """Carry out one attack, in a process of its own. token: an app's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * IDLE_SOCKETS)), hard))
    if name in CONNECTIONS:
        number, requests, more = CONNECTIONS[name]
        hold(port, ends, number, requests, **more)
    else:
        path, body = BODIES[name]
        headers = {"content-type": "application/json"}
        if path != SIGN_IN:
            headers["authorization"] = f"Bearer {token}"
        flood(f"http://127.0.0.1:{port}{path}", ends, body(), headers, threads=16 if name == "greedy_app" else 4)


def hold(port: int, ends: float, number: int, requests: list[bytes], *, bit: bytes = b"", reads: bool = False) -> None:
    """Hold connections; those that are closed are opened again.

    requests: what they send at first, in turn. bit: what each sends five times a second. reads: read the answers.
    """
    held: list[socket.socket] = []
    while time.monotonic() < ends:
        held = [one for one in held if is_open(one, reads=reads)]
        for missing in range(number - len(held)):
            with suppress(OSError):
                one = socket.create_connection(("127.0.0.1", port), timeout=5)
                one.sendall(requests[missing % len(requests)])
                one.setblocking(False)
                held.append(one)
        for one in held if bit else ():
            with suppress(OSError):
                one.send(bit)
        time.sleep(0.2)


def is_open(one: socket.socket, *, reads: bool) -> bool:
    """Whether a connection is open. reads: look behind the answer that may have come."""
    try:
        while (found := one.recv(65536, 0 if reads else socket.MSG_PEEK)) and reads:
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return found != b""


def flood(url: str, ends: float, body: bytes, headers: dict[str, str], *, threads: int) -> None:
    """Send a request again and again."""

    def send() -> None:
        with httpx.Client(headers=headers, timeout=30) as client:
            while time.monotonic() < ends:
                with suppress(httpx.HTTPError):
                    client.post(url, content=body)

    senders = [threading.Thread(target=send, daemon=True) for _ in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(max(0.0, ends - time.monotonic()) + 1)


@dataclass(kw_only=True)
class Owner:
    """Asks, and notes how long that took and what was refused."""

    world: World
    seconds: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, headers: dict[str, str], uds: str | None = None) -> httpx.Response | None:
        """One question, over a new connection; its answer, unless that is an error."""
        began, url = time.monotonic(), f"http://127.0.0.1:{self.world.port}{path}"
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=uds), timeout=10.0, trust_env=False) as client:
                answer = client.request(method, url, headers=headers)
            if answer.is_success:
                return answer
            self.refused.append(f"{path}: {answer.status_code}")
        except httpx.HTTPError as error:
            self.refused.append(f"{path}: {type(error).__name__}")
        finally:
            self.seconds.append(time.monotonic() - began)
        return None

    def visit(self, token: dict[str, str]) -> None:
        """What a browser asks that opens the page, signs in and looks."""
        for path in ("/", "/dashboard/app.js", "/dashboard/call.js"):
            self.ask("GET", path, {})
        session = self.ask("POST", SIGN_IN, token)
        if session is not None:
            cookie = "; ".join(f"{name}={value}" for name, value in session.cookies.items())
            token = {"x-page-key": session.json()["page_key"], "cookie": cookie}
        self.ask("GET", "/status", token)

    def go_on(self, ends: float) -> None:
        """Ask until then."""
        token = {"authorization": f"Bearer {json.loads((self.world.folder / 'tokens.json').read_text())['owner']}"}
        for number in count():
            if time.monotonic() >= ends:
                return
            self.ask("GET", "/jobs", token, str(self.world.folder / "pocketllm.sock") if number % 2 == 0 else None)
            if number % 10 == 0:
                self.visit(token)
            time.sleep(0.05)


def test_the_owner_is_served_meanwhile(world: World, report: Report) -> None:
    world.configure(TICK_SECONDS="2", IDLE_TICK_SECONDS="15")  # as they are by default
    world.start()
    world.call("POST", "/texts", {"text": "A few words that are not enough for a job.", "source": "bench"})
    app = world.call("POST", "/tokens", {"name": "siege", "scopes": ["ingest", "generate"]})["token"]
    everything, memory = Owner(world=world), []
    for number in (1, 2):
        for name in (*CONNECTIONS, *BODIES):
            owner, ends = Owner(world=world), time.monotonic() + 1 + (10 if report.full else 1)
            attacker = multiprocessing.get_context("spawn").Process(target=attack, args=(name, world.port, app, ends))
            attacker.start()
            try:
                owner.go_on(ends)
            finally:
                attacker.kill()
                attacker.join()
                attacker.close()
            everything.seconds += owner.seconds
            everything.refused += owner.refused
            report.raw[f"{name} {number}"] = {"seconds": owner.seconds, "refused": owner.refused}
        memory.append(memory_of(world.pid)["VmRSS"] / 1e6)
    report.values = {
        "owner_p99_s": quantile(everything.seconds, 0.99),
        "owner_max_s": max(everything.seconds),
        "refused_owner": float(len(everything.refused)),
        "memory_growth_mb": memory[1] - memory[0],
        "memory_mb": memory_of(world.pid)["VmHWM"] / 1e6,
        "log_kb": (world.folder / "bench.log").stat().st_size / 1e3,
    }
    report.end()
