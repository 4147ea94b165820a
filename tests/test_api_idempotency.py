"""Idempotency-Key: what is sent again is answered again and done once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import TOKEN, Rehearsal, assert_problem, rehearsal
from tests.tiny_models import tiny_native

KEY = {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
TEXT = {"text": "word " * 50, "source": "test"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Rehearsal]:
    with rehearsal(tmp_path / "data") as made:
        tiny_native(made.services.folder.models)
        yield made


def jobs(api: Rehearsal) -> int:
    return len(api.get("/jobs").json()["data"])


def test_a_job_that_is_asked_for_twice_is_one(api: Rehearsal) -> None:
    api.add("word " * 50)
    first = api.post("/jobs", json={"steps": 3}, headers=KEY)
    again = api.post("/jobs", json={"steps": 3}, headers=KEY)
    assert (first.status_code, again.status_code, jobs(api)) == (202, 202, 1)
    assert again.content == first.content and again.headers["location"] == first.headers["location"]
    assert again.headers["content-type"] == first.headers["content-type"]
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    assert api.post("/jobs", json={"steps": 3}).status_code == 202 and jobs(api) == 2, "without a key it is another"


def test_another_request_with_the_same_key_is_refused(api: Rehearsal) -> None:
    assert api.post("/texts", json=TEXT, headers=KEY).status_code == 201
    for path, body in (("/texts", TEXT | {"source": "other"}), ("/texts?source=x", TEXT), ("/jobs", {})):
        refused = api.post(path, json=body, headers=KEY)
        assert "another request" in assert_problem(refused, 422, "key_in_use")["detail"]
    assert jobs(api) == 0


def test_after_a_day_a_key_is_new(api: Rehearsal) -> None:
    api.add("word " * 50)
    for hours, count in ((0, 1), (23, 1), (2, 2)):
        api.clock.advance(3600 * hours)
        assert api.post("/jobs", json={}, headers=KEY).status_code == 202
        assert jobs(api) == count


def test_errors_of_the_request_are_answered_again_too(api: Rehearsal) -> None:
    assert_problem(api.post("/jobs", json={}, headers=KEY), 409, "nothing_to_learn")
    api.add("word " * 50)
    assert api.post("/jobs", json={}, headers=KEY).status_code == 409
    assert api.post("/jobs", json={}, headers={"idempotency-key": "next"}).status_code == 202


def test_each_callers_keys_are_its_own(api: Rehearsal) -> None:
    token = api.post("/tokens", json={"name": "app", "scopes": ["admin"]}).json()["token"]
    api.add("word " * 50)
    for sent in (TOKEN, token):
        assert api.post("/jobs", json={}, headers=KEY, token=sent).status_code == 202
    assert jobs(api) == 2


def test_a_token_is_kept_nowhere(api: Rehearsal) -> None:
    wish = {"name": "app", "scopes": ["ingest"]}
    token = api.post("/tokens", json=wish, headers=KEY).json()["token"]
    assert_problem(api.post("/tokens", json=wish, headers=KEY), 409, "already_there")
    api.services.store.close()
    assert token.encode() not in api.services.folder.database.read_bytes()


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "é"])
def test_what_is_no_key(api: Rehearsal, key: str) -> None:
    response = api.post("/texts", json=TEXT, headers={"idempotency-key": key.encode("latin-1")})
    assert_problem(response, 422, "invalid_value")


def test_while_the_first_is_under_way_the_second_is_told_so(api: Rehearsal) -> None:
    async def two() -> list[httpx.Response]:
        headers = {**KEY, "authorization": f"Bearer {TOKEN}"}
        transport = httpx.ASGITransport(api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:2407", headers=headers) as client:
            return list(await asyncio.gather(*(client.post("/texts", json=TEXT) for _ in range(2))))

    answered, refused = asyncio.run(two())
    assert answered.status_code == 201
    assert_problem(refused, 409, "under_way")
    assert refused.headers["retry-after"] == "1"


def test_a_body_that_is_too_large_is_still_refused(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100

    with rehearsal(tmp_path / "data", max_body_bytes=200) as api:
        headers = KEY | {"content-type": "text/plain"}
        assert_problem(api.post("/texts?source=a", content=chunks(), headers=headers), 413, "too_large")
        assert api.get("/texts").json()["data"] == []
