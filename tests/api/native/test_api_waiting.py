"""GET /jobs/ID?wait=: until the job has ended, the time is over, the client has gone, or the daemon ends."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.support.daemon.in_process_app import TOKEN, InProcessApp, assert_problem


@pytest.fixture
def job(api: InProcessApp) -> str:
    """A running job."""
    api.add("Wind west, glass rising.")
    identity = str(api.post("/jobs", json={"steps": 5}).json()["id"])
    api.tick()
    return identity


@contextmanager
def waiting(api: InProcessApp, job: str) -> Iterator[Future[httpx.Response]]:
    """A request that waits for a job, and that its end alone lets end soon."""
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(api.get, f"/jobs/{job}?wait=60")
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.2)
        yield answer
        assert answer.result(timeout=20).status_code == 200


def test_the_answer_comes_with_the_end_of_the_job(api: InProcessApp, job: str) -> None:
    with waiting(api, job[:-1]) as answer:
        api.post(f"/jobs/{job}/cancel")
    assert answer.result().json()["state"] == "cancelled"
    again = api.get(f"/jobs/{job}?wait=60")
    assert again.json() == answer.result().json() == api.get(f"/jobs/{job}").json()
    assert again.elapsed.total_seconds() < 30, "of a job that has ended it comes at once"


def test_after_the_time_it_comes_with_the_job_as_it_is(api: InProcessApp, job: str) -> None:
    for wait in ("0", "0.1"):
        assert api.get(f"/jobs/{job}?wait={wait}").json()["state"] == "running"


def test_a_daemon_that_ends_lets_nobody_wait(api: InProcessApp, job: str) -> None:
    with waiting(api, job):
        api.services.ending.set()


def test_a_client_that_goes_is_not_waited_for(api: InProcessApp, job: str) -> None:
    """Nor does it hold texts up meanwhile, as one that reads does."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]
    scope = {"type": "http", "method": "GET", "path": f"/jobs/{job}", "query_string": b"wait=60", "headers": headers}
    parts = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, str]:
        assert api.app.state.ingest._readers == 0
        return parts.pop(0) if len(parts) > 1 else parts[0]

    async def send(message: object) -> None:
        pass

    asyncio.run(asyncio.wait_for(api.app(scope, receive, send), 30))


def test_who_has_no_token_is_not_waited_for(api: InProcessApp, job: str) -> None:
    response = api.get(f"/jobs/{job}?wait=60", token=None)
    assert_problem(response, 401, "missing_token")
    assert response.elapsed.total_seconds() < 30


def test_what_is_no_time_to_wait(api: InProcessApp, job: str) -> None:
    for wait in ("-1", "61", "nan"):
        assert assert_problem(api.get(f"/jobs/{job}?wait={wait}"), 422, "invalid_value")["error"]["param"] == "wait"
    assert_problem(api.get("/jobs/none-such?wait=60"), 404, "not_found")
