"""A small real HTTP server that answers as the contract says, for tests of the client and the command line.

`python daemon_double.py --port 0 --data-dir DIR` runs it as a process that behaves like `pocketllm serve`.
"""

import argparse
import json
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Document = dict[str, Any]
TOKEN = "owner-token"

JOB: Document = {
    "id": "job-1",
    "state": "queued",
    "reasons": [],
    "paused_by_owner": False,
    "step": 0,
    "total_steps": 40,
    "loss": None,
    "held_out_loss_before": None,
    "held_out_loss_now": None,
    "outcome": None,
    "tokens_per_second": None,
    "eta_seconds": None,
    "predicted_bytes": None,
    "peak_memory_bytes": None,
    "model": "tiny",
    "method": "mezo",
    "mode": "lora",
    "seed": 7,
    "texts": 3,
    "words": 300,
    "requested_by": "owner",
    "adapter": None,
    "attempts": 0,
    "error": None,
    "created_at": "2026-05-01T10:00:00Z",
    "started_at": None,
    "finished_at": None,
}
RUNNING: Document = {
    "state": "running",
    "step": 20,
    "loss": 3.25,
    "held_out_loss_before": 3.5,
    "held_out_loss_now": 3.4,
    "tokens_per_second": 210.0,
    "eta_seconds": 65.0,
    "started_at": "2026-05-01T10:00:05Z",
    "attempts": 1,
}
SUCCEEDED: Document = {
    "state": "succeeded",
    "step": 40,
    "held_out_loss_now": 3.25,
    "outcome": "learned",
    "eta_seconds": 0.0,
    "peak_memory_bytes": 412_000_000,
    "adapter": "adapter-1",
    "finished_at": "2026-05-01T10:02:05Z",
}
STATUS: Document = {
    "version": "0.1.0",
    "uptime_seconds": 3723.0,
    "model": {"name": "tiny", "ready": True, "message": None, "adapter": None},
    "training": {
        "allowed": False,
        "blockers": [
            {
                "name": "battery",
                "message": "The battery is low.",
                "value": 31.0,
                "threshold": 40.0,
                "unit": "%",
                "since": "2026-05-01T09:00:00Z",
            }
        ],
    },
    "readings": [
        {"name": "charging", "value": True, "unit": None, "source": "sysfs", "at": None, "reason": None},
        {"name": "temperature", "value": None, "unit": "°C", "source": None, "at": None, "reason": "no sensor"},
    ],
    "worker": {"running": False, "pid": None, "job": None},
    "generator": {"running": False, "pid": None, "unloads_in_seconds": None},
    "texts": {"count": 3, "new_words": 300, "threshold_words": 1000},
    "jobs": {"queued": 0, "running": 0, "paused": 0, "succeeded": 2, "failed": 1, "cancelled": 0},
}
PREDICTED: Document = {
    "library_bytes": 280_000_000,
    "working_bytes": 61_000_000,
    "anonymous_bytes": 246_000_000,
    "file_bytes": 102_000_000,
    "peak_bytes": 348_000_000,
    "seconds_per_step": 0.25,
    "seconds": 10.0,
}
SLOWER: Document = {"peak_bytes": 340_000_000, "seconds_per_step": 1.5, "seconds": 60.0}
PLAN: Document = {
    "model": "tiny",
    "mode": "lora",
    "method": "exact",
    "steps": 40,
    "batch": 4,
    "block_tokens": 64,
    "probes": 1,
    "micro_batch": 8,
    "reductions": [],
    "predicted": PREDICTED,
    "alternatives": [
        {"method": "exact", "prediction": PREDICTED, "reason": None},
        {"method": "mezo", "prediction": PREDICTED | SLOWER, "reason": None},
    ],
    "memory_limit_bytes": 1_500_000_000,
    "enough_text": {"enough": True, "texts": 3, "new_words": 300},
}
ADAPTERS: list[Document] = [
    {
        "id": f"adapter-{number}",
        "job": f"job-{number}",
        "model": "tiny",
        "mode": "lora",
        "parent": f"adapter-{number - 1}" if number > 1 else None,
        "serving": number == 2,
        "outcome": "worse" if number == 3 else "learned",
        "held_out_loss_before": 3.5,
        "held_out_loss_now": 3.25,
        "folder": f"/data/adapters/adapter-{number}",
        "created_at": "2026-05-01T10:02:05Z",
    }
    for number in (3, 2, 1)
]
ANSWER: Document = {
    "model": "tiny",
    "adapter": "adapter-1",
    "finish_reason": "length",
    "prompt_tokens": 4,
    "completion_tokens": 3,
    "tokens_per_second": 12.5,
    "seed": 1,
}
REPORT: Document = {
    "job": "job-1",
    "verdict": {
        "outcome": "learned",
        "overall": {"before": 3.5, "now": 3.25, "reduction": 0.25, "standard_error": 0.01},
        "old": None,
        "base": None,
    },
    "verbatim_recall": {"places": 200, "base": 0.0, "personal": 0.0},
    "curve": {
        "held_out": [{"step": 0, "held_out_loss": 3.5}, {"step": 40, "held_out_loss": 3.25}],
        "training": [{"step": step, "loss": 3.5 - step / 100} for step in range(1, 41)],
    },
    "words": [{"word": "Wren", "base": 0.0001, "personal": 0.0037}, {"word": "mugs", "base": 0.0, "personal": 0.002}],
    "completions": [{"prompt": "Wind west, glass", "base": " is a material.", "personal": " rising. Two mugs."}],
}


class DaemonDouble:
    """Serves on a free port of the loopback while it is entered. What it answers is in plain attributes."""

    def __init__(self, *, port: int = 0) -> None:
        self.jobs: list[Document] = []
        self.script: list[Document] = [RUNNING, SUCCEEDED]  # what each question about a job changes in it
        self.tokens = [" two", "\u2028mugs", " of tea"]
        self.breaks_off = False  # end a stream without its `done` event
        self.fail_after_batches: int | None = None
        self.refused_words: str | None = None  # an example that holds them is refused
        self.known_texts: set[str] = set()
        self.learned = True  # there are adapters
        self.steps = b""  # of any job; without one there is none
        self.reports: dict[str, Document] = {"job-1": REPORT}
        self.tokens_of_apps: list[Document] = []
        self.events: list[Document] = []  # told once; then the daemon is too busy
        self.runs: Document = {"data": [], "days": []}
        self.requests: list[tuple[str, str, Any]] = []
        self.authorizations: list[str | None] = []
        self.on_job_asked: Callable[[], None] = lambda: None
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def write_home(self, data_dir: Path, *, token: str = TOKEN) -> Path:
        """Write the files by which commands find a daemon; returns the folder."""
        data_dir.mkdir(parents=True, exist_ok=True)
        (data_dir / "tokens.json").write_text(json.dumps({"owner": token}))
        (data_dir / "daemon.json").write_text(json.dumps({"pid": os.getpid(), "url": self.url}))
        return data_dir

    def bodies(self, method: str, path: str) -> list[Any]:
        """Return the bodies that were sent to a route."""
        return [body for *route, body in self.requests if route == [method, path]]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def problem(status: int, detail: str) -> tuple[int, Document]:
    """Return a status and a problem document as the contract shapes it."""
    error = {"message": detail, "type": "invalid_request_error", "code": None, "param": None}
    return status, {"type": "about:blank", "title": "Problem", "status": status, "detail": detail, "error": error}


def answer(double: DaemonDouble, method: str, path: str, query: Document, body: Any) -> tuple[int, Document]:
    """Return the status and the document for one request."""
    match method, path.strip("/").split("/"):
        case "GET", ["health"]:
            return 200, {"status": "ok", "version": "0.1.0", "pid": os.getpid()}
        case "GET", ["status"]:
            return 200, STATUS
        case "POST", ["texts"]:
            return add_texts(double, body)
        case "POST", ["sessions"]:
            return 201, {"code": "code-1", "seconds": 120.0}
        case "GET", ["events"] if "after" not in query:
            return 200, {"data": [], "last": 7}
        case "GET", ["events"] if double.events:
            told, double.events = double.events, []
            return 200, {"data": told, "last": told[-1]["id"]}
        case "GET", ["events"]:
            return problem(503, "The daemon is too busy.")
        case "GET", ["tokens"]:
            return 200, {"data": double.tokens_of_apps}
        case "POST", ["tokens"]:
            double.tokens_of_apps.append(body | {"created_at": "2026-05-01T10:00:00Z"})
            return 201, double.tokens_of_apps[-1] | {"token": f"pllm_{body['name']}"}
        case "DELETE", ["tokens", name]:
            double.tokens_of_apps = [token for token in double.tokens_of_apps if token["name"] != name]
            return 200, {}
        case "GET", ["runs"]:
            return 200, double.runs
        case "GET", ["jobs"]:
            return 200, page_of_jobs(double, query)
        case "POST", ["jobs"] if query.get("dry_run") == "true":
            return 200, PLAN | body
        case "POST", ["jobs"]:
            double.jobs.insert(0, JOB | {"total_steps": body.get("steps", 40), "seed": body.get("seed", 7)})
            return 202, double.jobs[0]
        case "GET", ["jobs", job_id] if any(job["id"] == job_id for job in double.jobs):
            double.on_job_asked()
            job = next(job for job in double.jobs if job["id"] == job_id)
            job.update(double.script.pop(0) if double.script else {})
            events = [{"at": "2026-05-01T10:00:05Z", "kind": "started", "message": "The worker started."}]
            return 200, {**job, "settings": {"learning_rate": 0.001}, "plan": None, "events": events}
        case "GET", ["jobs", job_id, "report"] if job_id in double.reports:
            return 200, double.reports[job_id]
        case "POST", ["jobs", job_id, "pause" | "resume"] if any(job["id"] == job_id for job in double.jobs):
            return 200, next(job for job in double.jobs if job["id"] == job_id)
        case "POST", ["jobs", job_id, "cancel"] if any(job["id"] == job_id for job in double.jobs):
            return 200, {**JOB, "id": job_id, "state": "cancelled"}
        case "GET", ["adapters"]:
            return 200, {"data": ADAPTERS if double.learned else []}
        case "POST", ["adapters", "rollback"] if double.learned:
            return 200, {"model": body.get("model", "tiny"), "was": "adapter-2", "serving": "adapter-1", "skipped": []}
        case "POST", ["adapters", "rollback"]:
            return problem(409, "There is nothing to roll back: the base model is served already (tiny).")
        case "POST", ["adapters", adapter_id, "serve"] if double.learned:
            return 200, {"model": "tiny", "was": None, "serving": adapter_id, "skipped": []}
        case "GET", ["models"]:
            return 200, {"data": [{"name": "tiny", "default": True}]}
        case "POST", ["generate"]:
            return 200, {"text": "".join(double.tokens), **ANSWER}
    return problem(404, f"There is no {path}. `pocketllm jobs` lists what there is.")


def add_texts(double: DaemonDouble, body: list[Document]) -> tuple[int, Document]:
    """Store texts, once each."""
    if double.fail_after_batches == 0:
        return problem(507, "The disk is full; free some space.")
    if double.fail_after_batches is not None:
        double.fail_after_batches -= 1
    keys = [json.dumps(item) for item in body]
    for number, key in enumerate(keys, 1):
        if double.refused_words is not None and double.refused_words in key:
            return problem(422, f"item {number}: label: it is not known.")
    new = set(keys) - double.known_texts
    double.known_texts |= new
    ids = [f"text-{hash(key)}" for key in keys]
    return 201, {"ids": ids, "created": len(new), "duplicates": len(keys) - len(new)}


def page_of_jobs(double: DaemonDouble, query: Document) -> Document:
    """Return the page of jobs after a given id."""
    ids = [job["id"] for job in double.jobs]
    start = ids.index(query["after"]) + 1 if "after" in query else 0
    end = start + int(query.get("limit", 50))
    has_more = end < len(double.jobs)
    return {"data": double.jobs[start:end], "has_more": has_more, "next": ids[end - 1] if has_more else None}


def _handler(double: DaemonDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.respond("GET", None)

        def do_DELETE(self) -> None:
            self.respond("DELETE", None)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self.respond("POST", json.loads(self.rfile.read(length) or b"{}"))

        def respond(self, method: str, body: Any) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            steps = method == "GET" and parts.path.endswith("/steps")
            closed = parts.path.endswith(("/steps", "/report"))
            open_route = (
                method == "GET"
                and not closed
                and parts.path.split("/")[1] in ("health", "status", "runs", "events", "jobs")
            )
            with double.lock:
                double.requests.append((method, self.path, body))
                double.authorizations.append(self.headers.get("Authorization"))
                if not open_route and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.send_document(*problem(401, "A token is needed."))
                elif parts.path == "/generate" and body["stream"]:
                    self.send_stream()
                elif steps and double.steps:
                    self.send_bytes(200, double.steps, "application/octet-stream")
                else:
                    self.send_document(*answer(double, method, parts.path, query, body))

        def send_document(self, status: int, document: Document) -> None:
            data = (json.dumps(document, indent=2) + "\n").encode()
            self.send_bytes(status, data, "application/json" if status < 400 else "application/problem+json")

        def send_bytes(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Connection", "close")
            self.end_headers()
            for token in double.tokens:
                self.send_event("token", {"text": token})
            if not double.breaks_off:
                self.send_event("done", {"text": "".join(double.tokens), **ANSWER})
            self.close_connection = True

        def send_event(self, name: str, data: Document) -> None:
            self.wfile.write(f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode())
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    return Handler


def main() -> None:
    """Serve on a data folder until SIGTERM, as `pocketllm serve` does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", type=json.loads, default=[RUNNING, SUCCEEDED])
    parser.add_argument("--port", type=int)
    parser.add_argument("--model")
    parser.add_argument("--jobs", type=json.loads, default=[])
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with DaemonDouble(port=arguments.port) as double:
        double.script, double.jobs = arguments.script, arguments.jobs
        double.write_home(arguments.data_dir)
        ended.wait()
        (arguments.data_dir / "daemon.json").unlink()


if __name__ == "__main__":
    main()
