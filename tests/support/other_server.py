"""A server that stands where a command looks for the daemon, and answers late or in another way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from threading import Event, Thread


@dataclass
class OtherServer:
    """Where it is, and what it was asked."""

    url: str
    asked: Queue[bytes] = field(default_factory=Queue)  #: the body of each request
    may_answer: Event = field(default_factory=Event)


@contextmanager
def other_server(status: int = 200, body: bytes = b"{}") -> Iterator[OtherServer]:
    """Serve on a free port; each request is answered once `may_answer` is set, at the latest at the block's end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            other.asked.put(self.rfile.read(int(self.headers["content-length"] or 0)))
            other.may_answer.wait()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        other = OtherServer(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever).start()
        try:
            yield other
        finally:
            other.may_answer.set()
            server.shutdown()
