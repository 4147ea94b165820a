"""A Hugging Face hub of one model, on this machine, that remembers what was asked of it."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Where the hub is, and which files were downloaded from it."""

    url: str
    commit: str = COMMIT
    fetched: list[str] = field(default_factory=list)


@contextmanager
def serve_hub(repository: str, folder: Path) -> Iterator[Hub]:
    """Serve the files in `folder` as the model `repository` ("org/name") until the block ends."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    answers = {
        f"/api/models/{repository}/revision/main": {"id": repository, "sha": COMMIT},
        f"/api/models/{repository}": {"id": repository, "sha": COMMIT},
        f"/api/models/{repository}/tree/{COMMIT}": [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ],
    }

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = urlsplit(self.path).path
            name = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
            if path in answers:
                status, body = 200, json.dumps(answers[path]).encode()
            elif name in files:
                status, body = 200, files[name]
                if with_body:
                    hub.fetched.append(name)
            else:
                status, body = 404, b"{}"
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            if name in files:  # as the hub does for files that it has in its chunk store, which this one lacks
                self.send_header("X-Xet-Hash", hashlib.sha256(body).hexdigest())
                self.send_header("X-Xet-Refresh-Route", f"{hub.url}/api/models/{repository}/xet-read-token/{COMMIT}")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Type", "application/json" if path in answers else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
