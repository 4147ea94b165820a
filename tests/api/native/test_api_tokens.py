"""Apps' own tokens: what each scope lets in, how they come and go, and what too many requests get."""

import asyncio
from pathlib import Path

import httpx
import pytest

from pocketllm.api.security.guard import Rate
from tests.support.daemon.in_process_app import TOKEN, InProcessApp, assert_problem, in_process_app
from tests.support.daemon.routes import OPEN, routes

TUNING = "/v1/fine_tuning/jobs"
#: What the scopes below admin let in, beside the document: all else takes admin.
LETS_IN = {
    "ingest": ["POST /texts", "POST /status/screen"],
    "recall": ["GET /passages"],
    "monitor": ["GET /status", "GET /nights", "GET /jobs/{job_id}"],
    "generate": [
        *("POST /generate", "POST /suggest", "POST /classify", "GET /adapters", "GET /models", "GET /v1/models"),
        *("GET /v1/models/{model_id}", "POST /v1/chat/completions", "POST /v1/completions"),
    ],
    "train": [
        *("GET /v1/files", "POST /v1/files", "GET /v1/files/{file_id}", "DELETE /v1/files/{file_id}"),
        *(f"GET {TUNING}", f"POST {TUNING}", f"GET {TUNING}/{{job_id}}", f"GET {TUNING}/{{job_id}}/events"),
        *(f"POST {TUNING}/{{job_id}}/{act}" for act in ("cancel", "pause", "resume")),
    ],
}


def test_a_scope_lets_in_what_it_says_and_nothing_else(api: InProcessApp, subtests: pytest.Subtests) -> None:
    for scope in (*LETS_IN, "admin"):
        token = api.app_token(scope, scope)
        with subtests.test(scope):
            for method, path in sorted(set(routes(api.app.routes)) - {*OPEN}):
                response = api.request(method, path, token=token)
                if scope == "admin" or f"{method} {path}" in ("GET /openapi.json", *LETS_IN[scope]):
                    assert response.status_code not in (401, 403), (method, path)
                elif method != "HEAD":
                    document = assert_problem(response, 403, "out_of_scope")
                    assert f"has the scope {scope}" in document["detail"]
                    assert "pocketllm token create NAME --scope" in document["detail"]
            for method, path in OPEN:
                assert api.request(method, path, token=token).status_code in (200, 404)


def test_a_token_is_told_once_and_kept_nowhere(api: InProcessApp) -> None:
    token = api.app_token("notes", "ingest", "generate")
    [listed] = api.get("/tokens").json()["data"]
    assert listed == {"name": "notes", "scopes": ["generate", "ingest"], "created_at": "2026-03-01T12:00:00Z"}
    api.services.store.close()
    kept = b"".join(file.read_bytes() for file in api.services.folder.root.iterdir() if file.is_file())
    assert b"notes" in kept and token.encode() not in kept


def test_a_withdrawn_token_is_good_for_nothing(api: InProcessApp) -> None:
    token, other = api.app_token("notes", "admin"), api.app_token("other", "admin")
    assert api.get("/texts", token=token).status_code == 200
    assert api.delete("/tokens/notes").status_code == 204
    assert_problem(api.get("/texts", token=token), 401, "bad_token")
    assert api.get("/texts", token=other).status_code == 200
    assert "pocketllm token list" in assert_problem(api.delete("/tokens/notes"), 404, "not_found")["detail"]


def test_tokens_outlive_the_daemon(tmp_path: Path) -> None:
    with in_process_app(tmp_path / "data") as api:
        token = api.app_token("notes", "admin")
    with in_process_app(tmp_path / "data") as api:
        assert api.get("/texts", token=token).status_code == 200


def test_a_name_is_taken_once(api: InProcessApp) -> None:
    api.app_token("notes", "ingest")
    for name in ("notes", "owner"):
        response = api.post("/tokens", json={"name": name, "scopes": ["ingest"]})
        assert "pocketllm token" in assert_problem(response, 409, "wrong_state")["detail"]


@pytest.mark.parametrize("settings", [{"app_requests_per_second": 0.2}])
def test_an_app_that_asks_too_often_is_told_when_to_come_back(bare: InProcessApp) -> None:
    token, other = bare.app_token("notes", "admin"), bare.app_token("other", "admin")
    assert [bare.get("/texts", token=token).status_code for _ in range(3)] == [200, 200, 429]
    refused = bare.get("/texts", token=token)
    assert "'notes' sends too many requests" in assert_problem(refused, 429, "too_often")["detail"]
    assert refused.headers["retry-after"] == "5"
    assert bare.get("/texts", token=other).status_code == 200, "others are not held up by it"
    assert {bare.get("/texts", token=TOKEN).status_code for _ in range(9)} == {200}, "nor is the owner"
    bare.clock.advance(5)
    assert [bare.get("/texts", token=token).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("settings", [{"app_requests_per_second": 0.2}])
def test_who_asks_too_often_without_a_token_keeps_nobody_from_signing_in(bare: InProcessApp) -> None:
    assert [bare.get("/jobs", token=None).status_code for _ in range(3)] == [200, 200, 429]
    for path in ("/", "/dashboard/app.js", "/health"):
        assert {bare.get(path, token=None).status_code for _ in range(9)} == {200}
    assert bare.post("/sessions/redeem").status_code == 200


def test_the_rate_over_a_clock_that_is_set_back() -> None:
    now = 100.0
    rate = Rate(1, lambda: now)
    assert [rate.wait_seconds("app") for _ in range(11)] == [0.0] * 10 + [1.0]
    now = 50.0
    assert rate.wait_seconds("app") == 1.0
    now = 52.0
    assert rate.wait_seconds("app") == 0.0


@pytest.mark.parametrize("settings", [{"max_requests": 1}])
def test_more_at_once_than_may_be_are_told_to_come_back(bare: InProcessApp) -> None:
    async def two() -> list[httpx.Response]:
        transport = httpx.ASGITransport(bare.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:2407") as client:
            return list(await asyncio.gather(client.get("/jobs"), client.get("/jobs")))

    answered, refused = asyncio.run(two())
    assert answered.status_code == 200
    assert "max_requests" in assert_problem(refused, 503, "busy")["detail"]
    assert refused.headers["retry-after"] == "1"
    assert bare.get("/jobs", token=None).status_code == 200, "when it is over the next one may"


@pytest.mark.parametrize("settings", [{"open_routes": False}])
def test_open_routes_can_be_closed(bare: InProcessApp) -> None:
    for path in ("/health", "/", "/dashboard/app.js"):
        assert bare.get(path, token=None).status_code == 200, "there is nothing in them"
    for path in ("/status", "/jobs", "/jobs/job-0"):
        assert_problem(bare.get(path, token=None), 401, "missing_token")
        assert bare.get(path).status_code in (200, 404)
