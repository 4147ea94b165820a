"""What other apps on the device can do to the owner: attacks on the real daemon while the owner asks for things.

python -m bench.siege [--seconds 10] [--quick]

One attack after another, each from a process of its own: sockets that send a request a byte at a time, requests whose
body or answer stalls, idle sockets, an app that sends as much as it is let, and small requests that were once costly.
Meanwhile the owner asks GET /jobs with the token, each time over a new connection, in turn by TCP and by the Unix
socket; and now and then opens the page in a browser, signs in and looks at it. `refused_owner` counts the owner's
questions that got anything but their answer. `memory_growth_mb` is how much more memory the daemon has after all
attacks than it had after the first round of them, `memory_mb` the most that it ever had.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.child import memory_of
from bench.harness import Limit, finish, parser, progress, start, table
from bench.load.clients import quantile
from bench.shapes import ensure, models_folder
from pocketllm.api.bodies import MAX_VALUES
from pocketllm.child import running_daemon

LIMITS = {
    "owner_p99_s": Limit(at_most=0.5),
    "refused_owner": Limit(at_most=0, always=True),
    "memory_growth_mb": Limit(at_most=20),
    "memory_mb": Limit(at_most=250),
}
_ASK_SECONDS, _PATIENCE_SECONDS = 0.05, 10.0
_VISIT_EVERY = 10  # questions
_SLOW_SOCKETS, _STALLED, _IDLE_SOCKETS, _APP_THREADS = 200, 64, 1200, 16
_HEAD = "{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The daemon, and an app's token."""

    port: int
    app: str


@dataclass(kw_only=True)
class Answers:
    """What the owner got."""

    seconds: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def slow_heads(target: Target, until: float) -> None:
    """Sockets that send a request's head a byte at a time."""
    sockets = _connected(target, _SLOW_SOCKETS)
    while time.monotonic() < until:
        for one in sockets:
            with suppress(OSError):
                one.send(b"G")
        time.sleep(0.5)


def stalled_streams(target: Target, until: float) -> None:
    """Questions for events whose answers are not read."""
    _sent(target, _STALLED, (_HEAD.format("GET /events?wait=60") + "Accept: text/event-stream\r\n\r\n").encode(), until)


def stalled_bodies(target: Target, until: float) -> None:
    """Bodies of which only the first byte comes, without a token."""
    head = _HEAD.format("POST /sessions/redeem") + "Content-Length: 100\r\n\r\n{"
    _sent(target, _STALLED, head.encode(), until)


def slow_bodies(target: Target, until: float) -> None:
    """Bodies without a token that come a byte at a time, for where the owner signs in, and for texts."""
    held: list[socket.socket] = []
    paths = ("/sessions/redeem", "/texts")
    while time.monotonic() < until:
        held = [one for one in held if not _is_gone(one)]
        for number, one in enumerate(_connected(target, _STALLED - len(held))):
            head = _HEAD.format(f"POST {paths[number % 2]}") + "Content-Length: 1000\r\n\r\n"
            with suppress(OSError):
                one.sendall(head.encode())
                held.append(one)
        for one in held:
            with suppress(OSError):
                one.send(b"{")
        time.sleep(0.2)


def idle_sockets(target: Target, until: float) -> None:
    """Connections that say nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * _IDLE_SOCKETS)), hard))
    _sent(target, _IDLE_SOCKETS, b"", until)


def greedy_app(target: Target, until: float) -> None:
    """An app that sends texts as fast as they are taken."""
    text = json.dumps([{"text": f"{number} " + "word " * 40, "source": "siege"} for number in range(100)]).encode()
    _flooded(target, "/texts", text, target.app, until, threads=_APP_THREADS)


def many_zeros(target: Target, until: float) -> None:
    """A chat of two million messages that are none."""
    _flooded(target, "/generate", b'{"messages": [' + b"0," * 2_000_000 + b"0]}", target.app, until)


def many_numbers(target: Target, until: float) -> None:
    """A prompt of numbers that are no tokens."""
    body = b'{"model": "pocketllm:latest", "prompt": [' + b"-1," * 300_000 + b"-1]}"
    _flooded(target, "/v1/completions", body, target.app, until)


def many_objects(target: Target, until: float) -> None:
    """2.6 million texts that are none."""
    _flooded(target, "/texts", b"[" + b"{}," * 2_600_000 + b"{}]", target.app, until)


def most_objects(target: Target, until: float) -> None:
    """As many as are looked at."""
    _flooded(target, "/texts", b"[" + b"{}," * (MAX_VALUES // 2 - 1) + b"{}]", target.app, until)


def many_lists(target: Target, until: float) -> None:
    """A prompt of 2.6 million lists."""
    _flooded(target, "/generate", b'{"prompt": [' + b"[]," * 2_600_000 + b"[]]}", target.app, until)


def many_parts(target: Target, until: float) -> None:
    """Chats of as many parts as are looked at."""
    part = {"type": "text", "text": "a"}
    messages = [{"role": "user", "content": [part] * 8} for _ in range(1000)]
    body = json.dumps({"model": "pocketllm:latest", "messages": messages, "stop": 0}).encode()
    _flooded(target, "/v1/chat/completions", body, target.app, until)


def many_chats(target: Target, until: float) -> None:
    """1,400 chats, the last of which is none."""
    chat = {"messages": [{"role": "assistant", "content": "a" * 30}] * 58}
    body = json.dumps([chat] * 1400 + [{}]).encode()
    _flooded(target, "/texts", body, target.app, until)


def many_fields(target: Target, until: float) -> None:
    """A body with 790,000 fields, without a token."""
    body = json.dumps(dict.fromkeys(map(str, range(790_000)), 0)).encode()
    _flooded(target, "/sessions/redeem", body, None, until)


def long_stop(target: Target, until: float) -> None:
    """A stop string of 600,000 characters."""
    body = json.dumps({"prompt": "Wind", "stop": "w" * 600_000, "max_tokens": 8}).encode()
    _flooded(target, "/generate", body, target.app, until)


ATTACKS: tuple[Callable[[Target, float], None], ...] = (
    slow_heads,
    stalled_streams,
    stalled_bodies,
    slow_bodies,
    idle_sockets,
    greedy_app,
    many_zeros,
    many_numbers,
    many_objects,
    most_objects,
    many_lists,
    many_parts,
    many_chats,
    many_fields,
    long_stop,
)


def _connected(target: Target, count: int) -> list[socket.socket]:
    found = []
    for _ in range(count):
        with suppress(OSError):
            found.append(socket.create_connection(("127.0.0.1", target.port), timeout=5))
    return found


def _sent(target: Target, count: int, request: bytes, until: float) -> None:
    """Hold so many connections, each with the same request; those that are closed are opened again."""
    held: list[socket.socket] = []
    while time.monotonic() < until:
        held = [one for one in held if not _is_closed(one)]
        for one in _connected(target, count - len(held)):
            with suppress(OSError):
                one.sendall(request)
                held.append(one)
        time.sleep(0.2)


def _is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_gone(one: socket.socket) -> bool:
    """Whether a connection was closed, behind the answer that may have come."""
    one.setblocking(False)
    try:
        while one.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _flooded(target: Target, path: str, body: bytes, token: str | None, until: float, *, threads: int = 4) -> None:
    """Send a request again and again, by several threads."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})

    def send() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{target.port}", headers=headers, timeout=30) as client:
            while time.monotonic() < until:
                with suppress(httpx.HTTPError):
                    client.post(path, content=body)

    workers = [threading.Thread(target=send, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()) + 1)


def asked(url: str, beside: str, token: str, until: float) -> Answers:
    """The owner's answers, by TCP and by the Unix socket in turn."""
    answers, number = Answers(), 0
    while time.monotonic() < until:
        number += 1
        transport = httpx.HTTPTransport(uds=beside) if number % 2 else None
        began = time.monotonic()
        try:
            with httpx.Client(base_url=url, transport=transport, timeout=_PATIENCE_SECONDS, trust_env=False) as client:
                answer = client.get("/jobs", headers={"authorization": f"Bearer {token}"})
            if not answer.is_success:
                answers.refused.append(str(answer.status_code))
        except httpx.HTTPError as error:
            answers.refused.append(type(error).__name__)
        answers.seconds.append(time.monotonic() - began)
        if number % _VISIT_EVERY == 1:
            _visited(url, token, answers)
        time.sleep(_ASK_SECONDS)
    return answers


def _visited(url: str, token: str, answers: Answers) -> None:
    """Add what a browser gets that opens the page, signs in and looks, each time over a new connection."""
    session, cookies = {"authorization": f"Bearer {token}"}, httpx.Cookies()
    pages = ("/", "/dashboard/app.js", "/dashboard/call.js")
    for method, path in [("GET", page) for page in pages] + [("POST", "/sessions/redeem"), ("GET", "/status")]:
        headers = {} if path in pages else session
        began = time.monotonic()
        try:
            with httpx.Client(base_url=url, cookies=cookies, timeout=_PATIENCE_SECONDS, trust_env=False) as client:
                answer = client.request(method, path, headers=headers)
            if not answer.is_success:
                answers.refused.append(f"{path}: {answer.status_code}")
            elif method == "POST":
                session = {"x-page-key": answer.json()["page_key"]}
                cookies.update(answer.cookies)
        except httpx.HTTPError as error:
            answers.refused.append(f"{path}: {type(error).__name__}")
        answers.seconds.append(time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    seconds = 1.0 if options.quick else options.seconds
    rows, everything, raw = [], Answers(), {}
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = ensure(models, "llama-tiny", "bfloat16").absolute()
        folder = Path(scratch) / "data"
        (folder / "models").mkdir(parents=True)
        (folder / "models" / model.name).symlink_to(model)
        with running_daemon(folder, [sys.executable, "-m", "pocketllm", "serve", "--model", model.name]) as client:
            client.post("texts", body=[{"text": "A few words that are not enough for a job.", "source": "bench"}])
            announced = json.loads((folder / "daemon.json").read_text())
            token = json.loads((folder / "tokens.json").read_text())["owner"]
            app = client.post("tokens", body={"name": "siege", "scopes": ["ingest", "generate"]})["token"]
            target, pid = Target(port=announced["port"], app=app), int(announced["pid"])
            memory = []
            for number in range(2):
                for attack in ATTACKS:
                    progress(f"round {number + 1}: {attack.__name__.replace('_', ' ')} ...")
                    found = _besieged(attack, target, announced, token, seconds)
                    everything.seconds += found.seconds
                    everything.refused += found.refused
                    rows.append(
                        [
                            attack.__name__.replace("_", " "),
                            f"{quantile(found.seconds, 0.5):.3f}",
                            f"{quantile(found.seconds, 0.99):.3f}",
                            str(len(found.refused)),
                            f"{memory_of(pid).get('VmRSS', 0) / 1e6:.0f}",
                        ]
                    )
                    raw[f"{attack.__name__} {number + 1}"] = {"seconds": found.seconds, "refused": found.refused}
                memory.append(memory_of(pid)["VmRSS"] / 1e6)
            most = memory_of(pid)["VmHWM"] / 1e6
            log_bytes = (folder / "daemon.log").stat().st_size
    values: dict[str, float | None] = {
        "owner_p99_s": quantile(everything.seconds, 0.99),
        "owner_max_s": max(everything.seconds),
        "refused_owner": float(len(everything.refused)),
        "memory_growth_mb": memory[1] - memory[0],
        "memory_mb": most,
        "log_kb": log_bytes / 1e3,
    }
    columns = ["attack", "owner p50, s", "p99, s", "refused", "daemon, MB"]
    caption = f"{seconds:g} s each, twice; the owner asks {len(everything.seconds)} times."
    return finish(
        "siege",
        [table("The siege", columns, rows, caption=caption)],
        values=values,
        limits=LIMITS,
        raw=raw,
        options=options,
    )


def _besieged(
    attack: Callable[[Target, float], None], target: Target, announced: dict[str, Any], token: str, seconds: float
) -> Answers:
    """What the owner gets while an attack goes on."""
    until = time.monotonic() + 1 + seconds
    attacker = multiprocessing.get_context("spawn").Process(target=attack, args=(target, until))
    attacker.start()
    try:
        return asked(announced["url"], announced["socket"], token, until)
    finally:
        attacker.kill()
        attacker.join()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.siege", "What other apps on the device can do to the owner.")
    made.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
