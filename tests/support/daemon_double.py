"""A small real HTTP server that answers as the contract says, for tests of the client and the command line.

`main` runs it as a process that behaves like `pocketllm serve --port 0 --data-dir DIR`.
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

from pocketllm.daemon.processes import started_ticks
from tests.support.daemon_documents import ADAPTERS, ANSWER, JOB, PLAN, REPORT, RUNNING, STATUS, SUCCEEDED, Document

TOKEN = "owner-token"


def announcement(url: str) -> Document:
    """The `daemon.json` of a daemon in this process."""
    return {"pid": os.getpid(), "process_started": started_ticks(os.getpid()), "url": url, "socket": None}


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
        self.reports: dict[str, Document] = {"job-1": REPORT}
        self.tokens_of_apps: list[Document] = []
        self.runs: list[Document] = []  # of any job
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
        (data_dir / "daemon.json").write_text(json.dumps(announcement(self.url)))
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


def problem(status: int, detail: str, code: str | None = None) -> tuple[int, Document]:
    """Return a status and a problem document as the contract shapes it."""
    error = {"message": detail, "type": "invalid_request_error", "code": code, "param": None}
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
        case "GET", ["tokens"]:
            return 200, {"data": double.tokens_of_apps}
        case "POST", ["tokens"]:
            double.tokens_of_apps.append(body | {"created_at": "2026-05-01T10:00:00Z"})
            return 201, double.tokens_of_apps[-1] | {"token": f"pllm_{body['name']}"}
        case "DELETE", ["tokens", name]:
            double.tokens_of_apps = [token for token in double.tokens_of_apps if token["name"] != name]
            return 200, {}
        case "GET", ["jobs"]:
            return 200, page_of_jobs(double, query)
        case "POST", ["jobs", "plan"]:
            return 200, PLAN | body
        case "POST", ["jobs"]:
            double.jobs.insert(0, JOB | {"total_steps": body.get("steps", 40), "seed": body.get("seed", 7)})
            return 202, double.jobs[0]
        case "GET", ["jobs", job_id] if any(job["id"] == job_id for job in double.jobs):
            double.on_job_asked()
            job = next(job for job in double.jobs if job["id"] == job_id)
            job.update(double.script.pop(0) if double.script else {})
            events = [{"at": "2026-05-01T10:00:05Z", "kind": "started", "message": "The worker started."}]
            detail: Document = {"settings": {"learning_rate": 0.001}, "plan": None, "events": events}
            return 200, {
                **job,
                **detail,
                "curve": {"held_out": [], "training": []},
                "report": None,
                "runs": double.runs,
            }
        case "GET", ["jobs", job_id, "report"] if job_id in double.reports:
            return 200, double.reports[job_id]
        case "GET", ["jobs", job_id, "report"] if any(job["id"] == job_id for job in double.jobs):
            return problem(409, f"Job {job_id} has ended without a report.", "wrong_state")
        case "POST", ["jobs", job_id, "pause" | "resume"] if any(job["id"] == job_id for job in double.jobs):
            return 200, next(job for job in double.jobs if job["id"] == job_id)
        case "POST", ["jobs", job_id, "cancel"] if any(job["id"] == job_id for job in double.jobs):
            return 200, {**JOB, "id": job_id, "state": "cancelled"}
        case "GET", ["adapters"]:
            return 200, {"data": ADAPTERS if double.learned else []}
        case "POST", ["adapters", "rollback"] if double.learned:
            return 200, {"model": body.get("model", "tiny"), "was": "adapter-2", "serving": "adapter-1", "skipped": []}
        case "POST", ["adapters", "rollback"]:
            return problem(409, "There is nothing to roll back: the base model tiny is already served.")
        case "POST", ["adapters", adapter_id, "serve"] if double.learned:
            return 200, {"model": "tiny", "was": None, "serving": adapter_id, "skipped": []}
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
            closed = parts.path.endswith("/report")
            open_route = method == "GET" and not closed and parts.path.split("/")[1] in ("health", "status", "jobs")
            with double.lock:
                double.requests.append((method, self.path, body))
                double.authorizations.append(self.headers.get("Authorization"))
                if not open_route and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.send_document(*problem(401, "A token is needed."))
                elif parts.path == "/generate" and body.get("stream"):
                    self.send_stream()
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
