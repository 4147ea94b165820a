"""The real application behind a port of this device; its sensors, clock, worker and generator are small doubles.

`main` runs it as a process that behaves like `pocketllm serve --port 0 --data-dir DIR`.
"""

import argparse
import json
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketllm import __version__
from pocketllm.connections import BoundedProtocol
from pocketllm.daemon.generation.generator import Event, GenerationRequest, Generator, Request, SuggestionRequest
from pocketllm.daemon.paths import adapter_id_of
from pocketllm.daemon.processes import started_ticks
from pocketllm.daemon.services import Services
from pocketllm.storage.tables import Outcome, Report
from tests.support.daemon.daemon_documents import REPORT, Document
from tests.support.daemon.in_process_app import TOKEN, InProcessApp, in_process_app
from tests.support.daemon.workers import new_step
from tests.support.faults import no_room


@dataclass
class Port:
    """A port on which one application after another answers."""

    url: str
    app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)


@contextmanager
def open_port() -> Iterator[Port]:
    """Listen on a free port, in a thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = Port(f"http://127.0.0.1:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            port,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()


class Words(Generator):
    """A generator that gives the same words whatever it is asked, and notes what that was."""

    def __init__(self, services: Services) -> None:
        super().__init__(services.folder, services.settings, memory_bytes=10**9)
        self.words = [" two", "\u2028mugs", " of tea"]
        self.asked: list[GenerationRequest] = []

    async def generate(self, request: Request) -> AsyncGenerator[Event]:
        if isinstance(request, SuggestionRequest):
            next_word = {"text": " day", "probability": 0.004, "share": 0.91}
            yield {"suggestions": [next_word], "replaces": 0, "complete": True}
            return
        assert isinstance(request, GenerationRequest)
        self.asked.append(request)
        for word in self.words:
            yield word
        numbers = {"prompt_tokens": 4, "completion_tokens": 3, "tokens_per_second": 12.5}
        yield {"text": "".join(self.words), "finish_reason": "length", **numbers}


@dataclass(kw_only=True)
class Served:
    """The application on a port, and what a test changes in its world."""

    api: InProcessApp
    words: Words
    url: str
    requests: list[str] = field(default_factory=list)  #: as they came, such as "GET /jobs?limit=20"
    before: Callable[[str], object] = lambda request: None  #: is called with each request, before it is answered
    breaks_off: bool = False  #: streams end without their `done` event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = b"?".join(filter(None, (scope["raw_path"], scope["query_string"]))).decode()
        self.requests.append(f"{scope['method']} {target}")
        self.before(self.requests[-1])

        async def passed_on(message: Message) -> None:
            if not (self.breaks_off and message.get("body", b"").startswith(b"event: done")):
                await send(message)

        await self.api.app(scope, receive, passed_on)

    @property
    def home(self) -> Path:
        """The data folder."""
        return self.api.services.folder.root

    def announce(self, *, token: str = TOKEN) -> None:
        """Write the files by which commands find a daemon."""
        (self.home / "tokens.json").write_text(json.dumps({"owner": token}))
        (self.home / "daemon.json").write_text(json.dumps(announcement(self.url)))

    def texts(self) -> list[Document]:
        """The stored texts, up to 500."""
        found: list[Document] = self.api.get("/texts", params={"limit": 500}).json()["data"]
        return found

    def play(self, *acts: Callable[[], object]) -> None:
        """Let these happen, one before the answer to each question about a job."""
        left = iter(acts)

        def act(request: str) -> None:
            if re.fullmatch(r"GET /jobs/job-\w+", request):
                next(left, lambda: None)()

        self.before = act

    @contextmanager
    def full_disk_from(self, request: str, number: int) -> Iterator[None]:
        """Let every write fail from this request on, when it comes for the `number`th time."""
        with ExitStack() as faults:

            def fail(came: str) -> None:
                if came == request and self.requests.count(request) == number:
                    faults.enter_context(no_room())

            self.before = fail
            yield
            self.before = lambda came: None

    def run(self) -> None:
        """Let the next job start, and make half of its steps."""
        self.api.tick()
        assert self.api.runner.job_id is not None
        jobs, job_id = self.api.services.store.jobs, self.api.runner.job_id
        total = jobs.update(job_id, total_steps=jobs.get(job_id).total_steps or 300).total_steps or 0
        self._note(0, 3.5)
        self._note(total // 2, 3.4)

    def succeed(self, outcome: Outcome = Outcome.LEARNED) -> str:
        """Let the running job end two minutes later with an adapter; its id."""
        api, store = self.api, self.api.services.store
        assert api.runner.job_id is not None
        job = store.jobs.get(api.runner.job_id)
        loss = 3.25 if outcome is Outcome.LEARNED else 3.51
        self._note(job.total_steps or 0, loss)
        store.jobs.set_peak_memory(job.id, 412_000_000)
        api.clock.advance(120)
        report = Report(
            job_id=job.id,
            numbers={name: REPORT[name] for name in ("verdict", "verbatim_recall")},
            content={name: REPORT[name] for name in ("words", "completions")},
        )
        losses = {"held_out_loss_before": 3.5, "held_out_loss_now": loss}
        api.succeed(job.id, adapter_id_of(job.id), report=report, outcome=outcome, **losses)
        return adapter_id_of(job.id)

    def unproven(self) -> None:
        """Let the running job end without a proof of learning."""
        self.succeed(Outcome.NO_PROOF)

    def fail(self) -> None:
        """Let the running job fail."""
        assert self.api.runner.job_id is not None
        self.api.services.store.jobs.fail(self.api.runner.job_id, error="Out of memory.", now=self.api.clock.now)
        self.api.runner.ends(1)
        self.api.tick()

    def finish(self) -> str:
        """Let the next job start and succeed; its adapter."""
        self.run()
        return self.succeed()

    def learn(self, outcome: Outcome = Outcome.LEARNED) -> str:
        """Let a job of 40 steps make an adapter from a new text; its id."""
        count = self.api.services.store.texts.counts().texts
        self.api.add(f"Wind west, glass rising. Mug of tea number {count}.")
        response = self.api.post("/jobs", json={"steps": 40, "seed": 7})
        assert response.status_code == 202, response.text
        self.run()
        return self.succeed(outcome)

    def _note(self, step: int, held_out_loss: float) -> None:
        """A step of the running job, but for step 0, and what is measured after it."""
        job_id, step_log = self.api.runner.job_id, self.api.services.store.step_log
        assert job_id is not None
        if step:
            step_log.append(new_step(job_id, step, loss=held_out_loss - 0.15, tokens=210, seconds=1))
        step_log.evaluate(
            job_id, step=step, loss=held_out_loss, block_losses={"one": held_out_loss}, now=self.api.clock.now
        )


def announcement(url: str) -> Document:
    """The `daemon.json` of a daemon in this process."""
    process = {"pid": os.getpid(), "process_started": started_ticks(os.getpid())}
    return {**process, "version": __version__, "url": url, "socket": None, "settings": {}}


@contextmanager
def serving(folder: Path, port: Port, **settings: Any) -> Iterator[Served]:
    """Serve the application on a data folder, which then says where it is."""
    with in_process_app(folder, **settings) as api:
        words = Words(api.services)
        api.services.generator = words
        api.services.scheduler.recover(api.clock.now)  # as the daemon does at its start
        served = Served(api=api, words=words, url=port.url)
        former, port.app = port.app, served
        served.announce()
        try:
            yield served
        finally:
            port.app = former


def main() -> None:
    """Serve a data folder until SIGTERM. `--acts`: names of Served's methods, for `play`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--acts", default="")
    parser.add_argument("--data-dir", type=Path)
    arguments, _ = parser.parse_known_args()  # the daemon's other options change nothing here
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with open_port() as port, serving(arguments.data_dir, port) as served:
        served.play(*(getattr(served, act) for act in arguments.acts.split()))
        ended.wait()
        (served.home / "daemon.json").unlink()
