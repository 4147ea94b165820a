"""The app in this process, with small doubles for clock, sensors and worker."""

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocketllm.api.app import create_app
from pocketllm.daemon.conditions.discovery import SensorSet
from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.scheduling.worker_process import Exit, WorkerProcess
from pocketllm.daemon.services import Services, build_services
from pocketllm.daemon.settings import load_settings
from tests.support.daemon.workers import write_adapter_files
from tests.support.stored import succeed

Document = dict[str, Any]

TOKEN = "token-of-the-test"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def assert_problem(response: httpx.Response, status: int, code: str) -> Document:
    """Check that the answer is an error in the one shape that all errors have, and give its document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.text.endswith("}\n")
    document: Document = response.json()
    assert set(document) == {"type", "title", "status", "detail", "error"}
    assert set(document["error"]) == {"message", "type", "code", "param"}
    assert document["status"] == status
    assert document["title"]
    assert document["detail"] == document["error"]["message"] and document["detail"].endswith((".", ")"))
    assert document["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert document["error"]["code"] == code
    return document


@dataclass
class Clock:
    """A clock that moves when it is told to."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> datetime:
        """Let time pass; the new time."""
        self.now += timedelta(seconds=seconds)
        return self.now


@dataclass
class FixedSensor:
    """A sensor that sees what it is told to."""

    name: str
    value: bool | float | str | None
    unit: str | None = None
    reason: str | None = None
    absent: bool = False

    def read(self, now: datetime) -> Reading:
        return Reading(source="test", at=now, **asdict(self))


@dataclass
class FakeRunner(WorkerProcess):
    """A runner without a process: a worker runs from `start` until `ends` or `kill`."""

    job_id: str | None = None
    ended: Exit | None = None
    started: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    cpu_seconds: float | None = None

    @property
    def pid(self) -> int | None:
        return 4711 if self.job_id else None

    def start(self, job_id: str, start: int, *, seconds: float, immediate: bool = False) -> None:
        assert self.job_id is None
        self.job_id = job_id
        self.started.append(job_id)
        self.seconds.append(seconds)

    def ends(self, code: int, last_words: str = "") -> None:
        """Let the worker end by itself."""
        assert self.job_id is not None
        self.ended = Exit(job_id=self.job_id, code=code, last_words=last_words)

    def reap(self) -> Exit | None:
        ended, self.ended = self.ended, None
        if ended:
            self.job_id = None
        return ended

    def kill(self) -> Exit | None:
        job_id, self.job_id = self.job_id, None
        if job_id is None:
            return None
        self.killed.append(job_id)
        return Exit(job_id=job_id, code=-9, last_words="", cpu_seconds=1.5)


@dataclass(kw_only=True)
class InProcessApp:
    """The app with doubles for sensors, worker and clock; requests are answered in this process."""

    services: Services
    clock: Clock
    runner: FakeRunner
    power: FixedSensor
    battery: FixedSensor
    memory: FixedSensor

    def __post_init__(self) -> None:
        self.app = create_app(self.services, token=TOKEN)

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = TOKEN,
        headers: Mapping[str, str] | None = None,
        base_url: str = "http://127.0.0.1:2407",
        **body: Any,
    ) -> httpx.Response:
        """Send one request; `token=None` sends none."""
        sent = ({} if token is None else {"authorization": f"Bearer {token}"}) | dict(headers or {})

        async def ask() -> httpx.Response:
            # As behind a real server, an unexpected exception is an answer.
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
                return await client.request(method, path, headers=sent, **body)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", path, **options)

    def ask(self, method: str, path: str, **options: Any) -> Document:
        """Send one request; the document of its answer, which is no error."""
        response = self.request(method, path, **options)
        assert response.is_success, response.text
        document: Document = response.json()
        return document

    def add(self, *texts: str, source: str = "test") -> list[str]:
        """Store texts; their ids."""
        ids: list[str] = self.ask("POST", "/texts", json=[{"text": text, "source": source} for text in texts])["ids"]
        return ids

    def app_token(self, name: str, *scopes: str) -> str:
        """A new token of an app's."""
        return str(self.ask("POST", "/tokens", json={"name": name, "scopes": scopes})["token"])

    def upload(self, data: bytes, *, token: str = TOKEN) -> httpx.Response:
        """Send a file to train on."""
        return self.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "fine-tune"}, token=token)

    def uploaded(self, *examples: Document, token: str = TOKEN) -> str:
        """Send a file of examples; its id."""
        response = self.upload("".join(json.dumps(one) + "\n" for one in examples).encode(), token=token)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    def tune(self, file: str, *, model: str = "pocketllm:base", token: str = TOKEN, **fields: Any) -> Document:
        """Ask for a fine-tuning job as OpenAI's clients do; its document."""
        body = {"model": model, "training_file": file, **fields}
        return self.ask("POST", "/v1/fine_tuning/jobs", json=body, token=token)

    def tick(self, seconds: float = 2) -> None:
        """Let the scheduler look at everything, some seconds later."""
        self.services.scheduler.tick(self.clock.advance(seconds))

    def learn(self, name: str, *texts: str, **columns: Any) -> list[str]:
        """Let a job train on texts, by default on one, and make an adapter; the texts' ids."""
        ids = self.add(*texts or [f"Words for {name}."])
        job = self.post("/jobs").json()["id"]
        self.tick(60)
        self.succeed(job, name, **columns)
        return ids

    def succeed(self, job: str, name: str, **more: Any) -> None:
        """Let the worker of the running job end with an adapter, which is served if it has learned."""
        store = self.services.store
        write_adapter_files(self.services.folder.adapter(name))
        succeed(store, store.jobs.get(job), name, now=self.clock.now, **more)
        self.runner.ends(0)
        self.tick()


@contextmanager
def in_process_app(folder: Path, **settings: Any) -> Iterator[InProcessApp]:
    """The app on a folder, on external power, with plenty of everything."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("POCKETLLM_")]:
            patch.delenv(name)
        patch.setenv("POCKETLLM_CONFIG", str(folder / "no-config.toml"))
        patch.setenv("POCKETLLM_MODEL", "tiny")  # not above config.toml in a test that switches
        loaded = load_settings({"data_dir": folder, **settings})
    runner, clock = FakeRunner(), Clock()
    power = FixedSensor("power", True)
    battery = FixedSensor("battery", 80.0, "%")
    memory = FixedSensor("memory", 4e9, "bytes")
    sensor_set = SensorSet(sensors=[power, battery, memory])
    services = build_services(loaded, sensor_set=sensor_set, runner=runner, uptime=lambda: clock.now.timestamp())
    services.now, services.started_at = clock, clock.now
    try:
        yield InProcessApp(services=services, clock=clock, runner=runner, power=power, battery=battery, memory=memory)
    finally:
        services.fresh_look.wake_lock.close()
        services.store.close()
