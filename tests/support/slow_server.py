"""A server in the daemon's place that does not answer for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from threading import Event, Thread


@dataclass
class SlowServer:
    """Where it is, what it was asked, and when it answers."""

    url: str
    asked: Queue[bytes] = field(default_factory=Queue)  #: the body of each request
    answers: Event = field(default_factory=Event)


@contextmanager
def slow_server() -> Iterator[SlowServer]:
    """Serve on a free port: each request is answered with {} once `answers` is set, as it is at the block's end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            slow.asked.put(self.rfile.read(int(self.headers["content-length"] or 0)))
            slow.answers.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        slow = SlowServer(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever).start()
        try:
            yield slow
        finally:
            slow.answers.set()
            server.shutdown()
