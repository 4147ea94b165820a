"""What is refused on every route before it does anything; that all of it is, schemathesis tries.

Examples of POST /texts and files are checked by a parser of our own: native/test_api_examples.py,
openai/test_api_tuning.py.
"""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support.daemon.in_process_app import Document, InProcessApp, assert_problem

JSON = "application/json"
#: A route, a body or parameters that its schema forbids, and the place that is to blame.
WRONG: list[tuple[str, Any, str | None]] = [
    ("POST /jobs", {"steps": 0}, "steps"),
    ("POST /jobs", {"steps": "5"}, "steps"),
    ("POST /jobs", {"steps": True}, "steps"),
    ("POST /jobs", {"steps": 5, "surplus": 1}, "surplus"),
    ("POST /jobs", [], None),
    ("POST /generate", {"prompt": "a", "temperature": -1}, "temperature"),
    ("POST /generate", {"messages": [{"role": "user"}]}, "messages.0.content"),
    ("POST /suggest", {}, "context"),
    ("POST /status/snooze", {"until": "2030-01-01T00:00:00"}, "until"),  # a time without its zone
    ("POST /tokens", {"name": "../x", "scopes": ["ingest"]}, "name"),
    ("POST /tokens", {"name": "x", "scopes": ["nonsense"]}, "scopes.0"),
    ("POST /v1/completions", {"model": "m", "prompt": "a", "stop": ["x"] * 100}, "stop"),
    ("GET /texts", {"limit": "x"}, "limit"),
    ("GET /jobs", {"limit": 0}, "limit"),
]


def operations(api: InProcessApp) -> Iterator[tuple[str, str, Document]]:
    for path, methods in api.app.openapi()["paths"].items():
        for method, about in methods.items():
            yield method.upper(), path, about


def with_body(api: InProcessApp) -> Iterator[tuple[str, str, Document]]:
    """The routes that take JSON, each with the kinds of body that it takes."""
    for method, path, about in operations(api):
        if JSON in (content := about.get("requestBody", {}).get("content", {})):
            yield method, path, content


def assert_nothing_was_done(api: InProcessApp) -> None:
    for path in ("/texts", "/jobs", "/v1/files", "/tokens"):
        assert api.get(path).json()["data"] == [], path
    assert api.get("/status").json()["training"]["snoozed_until"] is None


def test_field_that_is_wrong_is_named(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    for route, sent, place in WRONG:
        with subtests.test(route, sent=str(sent)):
            method, path = route.split()
            given: Document = {"params": sent} if method == "GET" else {"json": sent}
            response = shared.request(method, path, **given)
            document = assert_problem(response, 422, "invalid_value")
            named = document["error"]["param"]
            assert named == place or (place and named and named.startswith(f"{place}."))
            assert (place or "body") in document["detail"] and len(response.content) < 4000
    assert_nothing_was_done(shared)


def test_body_of_another_kind_is_refused(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    forms = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain")
    for method, path, content in with_body(shared):
        with subtests.test(path):
            for kind in {*forms, "text/html", "application/xml"} - content.keys():
                for body in (b'{"steps": 5}', b""):
                    response = shared.request(method, path, content=body, headers={"content-type": kind})
                    document = assert_problem(response, 415, "unsupported_media_type")
                    assert all(one in document["detail"] for one in (kind.partition(";")[0], *content))
            untold = assert_problem(shared.request(method, path, content=b"{}"), 415, "unsupported_media_type")
            assert "missing" in untold["detail"]
    assert_nothing_was_done(shared)


#: No JSON, not UTF-8, half of a surrogate pair, a number without end, and brackets that recursion would fall over.
UNREADABLE = [b'{"steps": ', b'{"steps": \xff}', b'{"\\ud800": 1}', b'{"seed": ' + b"9" * 5000 + b"}", b"[" * 100_000]


def test_body_that_cannot_be_read_is_refused(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    for method, path, _ in with_body(shared):
        with subtests.test(path):
            for body in UNREADABLE:
                response = shared.request(method, path, content=body, headers={"content-type": JSON})
                assert assert_problem(response, 422, "invalid_value")["error"]["param"] is None, body[:20]
    assert_nothing_was_done(shared)


def test_ten_megabytes_are_refused(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 10**6

    for method, path, _ in with_body(shared):
        with subtests.test(path):
            for body in (b" " * 10**7, chunks()):  # with their length, and without
                response = shared.request(method, path, content=body, headers={"content-type": JSON})
                assert "max_body_bytes" in assert_problem(response, 413, "too_large")["detail"]
    assert_nothing_was_done(shared)


#: Nothing lists these.
UNLISTED = {"/dashboard/{name}", "/deletions/{deletion_id}"}


def test_unknown_id_is_named_with_what_lists_them(api: InProcessApp, subtests: pytest.Subtests) -> None:
    api.add("Wind west.")
    for method, path, about in operations(api):
        if "{" in path:
            unknown = re.sub(r"{\w+}", "none-such", path)
        elif any(one["name"] == "after" for one in about.get("parameters", ())):
            unknown = f"{path}?after=none-such"
        else:
            continue
        with subtests.test(f"{method} {path}"):
            code = "model_not_found" if "model_id" in path else "not_found"
            detail = assert_problem(api.request(method, unknown), 404, code)["detail"]
            assert "'none-such'" in detail
            assert path in UNLISTED or re.search("GET /|`pocketllm|without `after`", detail)
    assert len(api.get("/texts").json()["data"]) == 1
