"""What the daemon does with bytes on its socket, where no client library stands between."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.daemon.in_process_app import assert_problem
from tests.support.daemon.real_daemon import Daemon, running


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("wire") / "data") as started:
        yield started


def test_answers_do_not_wait_for_the_network(daemon: Daemon) -> None:
    """Between two programs on one device, Nagle's algorithm costs 40 ms an answer."""
    seconds = sorted(daemon.client.get("/health").elapsed.total_seconds() for _ in range(40))
    assert seconds[len(seconds) // 4] < 0.03


def test_a_body_that_is_too_large_is_answered_while_it_is_being_sent(daemon: Daemon) -> None:
    before = daemon.status()["texts"]["count"]
    headers = {"content-type": "text/plain"}
    for content in (b"a" * 10**7, iter([b"a" * 10**6] * 10)):
        response = daemon.client.post("/texts", content=content, headers=headers)
        assert_problem(response, 413, "too_large")
    assert daemon.status()["texts"]["count"] == before


def test_the_owner_signs_in_beside_bodies_that_never_end(daemon: Daemon) -> None:
    port = daemon.client.base_url.port
    lines = ("POST /sessions/redeem", "POST /texts", "GET /", "POST /none")
    rest = "HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with ExitStack() as held:
        for number in range(64):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.sendall(f"{lines[number % len(lines)]} {rest}".encode())
            assert connection.recv(1), "it is answered before its body is read"
        for path in ("/", "/dashboard/app.js"):
            assert daemon.stranger.get(path).status_code == 200
        code = daemon.client.post("/sessions").json()["code"]
        signed_in = daemon.stranger.post("/sessions/redeem", headers={"authorization": f"Bearer {code}"})
        page_key = {"x-page-key": signed_in.json()["page_key"]}
        assert daemon.stranger.get("/status", headers=page_key).status_code == 200
    daemon.stranger.cookies.clear()


def test_a_sender_that_leaves_is_nothing_to_report(daemon: Daemon) -> None:
    before = daemon.log
    for path, kind in (
        ("/texts", "text/plain"),
        ("/jobs", "application/json"),
        ("/v1/files", "multipart/form-data; boundary=x"),
    ):
        lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {daemon.token}")
        head = "\r\n".join((*lines, f"Content-Type: {kind}", "Content-Length: 100", "", ""))
        with socket.create_connection(("127.0.0.1", daemon.client.base_url.port), timeout=10) as connection:
            connection.sendall(head.encode() + b"-")
            connection.shutdown(socket.SHUT_WR)
            connection.makefile("rb").read()
    assert daemon.status()["texts"]["count"] == 0
    assert daemon.log == before


def test_what_comes_over_the_wire(daemon: Daemon) -> None:
    answers = {
        b"GET /health HTTP/1.0\r\n\r\n": b"403",  # no Host
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n": b"403",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n": b"200",
        b"GET /health HTTP/1.1\r\n\r\n": b"400",
        b"GET /texts HTTP/1.1\r\nHost: localhost\r\n\r\n": b"401",
        b"no HTTP at all\r\n\r\n": b"400",
    }
    for request, status in answers.items():
        with socket.create_connection(("127.0.0.1", daemon.client.base_url.port), timeout=10) as connection:
            connection.sendall(request)
            first_line = connection.makefile("rb").readline()
        assert first_line.split()[1] == status, request
        assert daemon.stranger.get("/health").status_code == 200
