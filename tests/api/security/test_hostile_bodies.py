"""Small requests that would cost much, and what the document cannot say of a body: each gets a clear error.

That what the document forbids is refused, schemathesis tries on every route.
"""

import json
from collections.abc import Iterator

import pytest
from starlette.datastructures import Headers

from pocketllm.api.security.guard import _weight
from pocketllm.daemon.documents import MAX_FIELDS
from tests.support.daemon.in_process_app import Document, InProcessApp, assert_problem

HALF = "\\ud83d"  # half of a pair

#: A route, a body, the field that is to blame (None: whichever), and what is said of it.
ROWS = [
    ("/generate", '{"messages": [' + "0," * 100_000 + "0]}", "messages.0", "JSON object"),
    ("/generate", '{"prompt": "a", "stop": "' + "w" * 600_000 + '"}', "stop.0", "at most 256 characters"),
    ("/generate", '{"prompt": "a", "stream": 0}', "stream", "valid boolean"),
    ("/generate", '{"prompt": "a", "keep_alive": 1e400}', "keep_alive", "finite number"),
    ("/generate", f'{{"prompt": "{HALF}"}}', None, "not valid JSON"),
    ("/generate", f'{{"messages": [{{"role": "user", "content": "{HALF}"}}]}}', None, "not valid JSON"),
    ("/generate", f'{{"prompt": "a", "{HALF}": 1}}', None, "not valid JSON"),
    ("/generate", '{"prompt": [' + "[]," * 2_600_000 + "[]]}", None, "too many values"),
    ("/generate", '{"messages": [' + "{}," * 10_000 + "{}]}", None, "too many values"),
    ("/generate", '{"prompt": "a", "stop": [' + "0," * 200_000 + "0]}", "stop.0", "valid string"),
    ("/texts", "[" + "{}," * 2_600_000 + "{}]", None, "too many values"),
    ("/texts", "[" + '"",' * 1_300_000 + '""]', None, "too many values"),
    ("/texts", "[" + "{}," * 40_000 + "{}]", None, "40,001 texts"),
    ("/v1/completions", '{"model": "m", "prompt": [' + "-1," * 100_000 + "-1]}", None, "prompt."),
    ("/v1/completions", '{"model": "m", "prompt": [' + "1," * 200_000 + "1]}", None, "at most 100000 items"),
    ("/jobs", json.dumps(dict.fromkeys(map(str, range(MAX_FIELDS + 1)), 0)), None, f"at most {MAX_FIELDS} are"),
    ("/jobs", '{"seed": 1' + "0" * 300 + "}", "seed", "less than or equal"),
    ("/classify", '{"text": "a", "labels": ["one", "one "]}', "labels", "two of the labels are the same"),
    ("/classify", '{"text": "a", "labels": ["one", " "]}', "labels", "one of the labels is empty"),
    ("/tokens", '{"name": "../x", "scopes": ["ingest"]}', "name", "pattern"),
]


def test_it_is_refused_in_few_words(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    for path, body, param, says in ROWS:
        with subtests.test(path, body=body[:60]):
            response = shared.post(path, content=body, headers={"content-type": "application/json"})
            document = assert_problem(response, 422, "invalid_value")
            assert says in document["detail"]
            assert param is None or document["error"]["param"] == param
            assert len(response.content) < 4_000, "the input is not quoted in bulk"


JSON = "application/json"


def with_body(api: InProcessApp) -> Iterator[tuple[str, str, Document]]:
    """The routes that take JSON, each with the kinds of body that it takes."""
    for path, methods in api.app.openapi()["paths"].items():
        for method, about in methods.items():
            if JSON in (content := about.get("requestBody", {}).get("content", {})):
                yield method.upper(), path, content


def assert_nothing_was_done(api: InProcessApp) -> None:
    for path in ("/texts", "/jobs", "/v1/files", "/tokens"):
        assert api.get(path).json()["data"] == [], path
    assert api.get("/status").json()["training"]["snoozed_until"] is None


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


def test_allow_names_every_method_of_a_path(shared: InProcessApp) -> None:
    response = shared.request("PUT", "/texts")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, POST"


def test_words_count_for_nothing_however_they_are_written(bare: InProcessApp) -> None:
    words = '{"a", [b]}, \\\\ "' * 40_000  # 200,000 marks, and more quotes and backslashes
    response = bare.post("/texts", json=[{"text": words}, {"text": f"{words} again"}])
    assert response.status_code == 201, response.text


def test_of_large_bodies_an_app_sends_two_at_once() -> None:
    small, large, chunked = {"content-length": "65536"}, {"content-length": "65537"}, {"transfer-encoding": "chunked"}
    assert [_weight(Headers(one)) for one in (small, large, chunked, {})] == [1, 8, 8, 1]
