"""Small requests that would cost much, and what the document cannot say of a body: each gets a clear error.

What it says is broken on every route in test_validation.py.
"""

import json
from typing import Any

import pytest
from starlette.datastructures import Headers

from pocketllm.api.security.guard import _weight
from pocketllm.daemon.documents import MAX_FIELDS
from tests.support.daemon.in_process_app import InProcessApp, assert_problem

HALF = "\\ud83d"  # half of a pair
CHAT = '"model": "m", "messages": [{"role": "user", "content": "x"}]'

#: A route, a body, the field that is to blame (None: whichever), and what is said of it.
ROWS = [
    ("/generate", '{"messages": [' + "0," * 100_000 + "0]}", "messages.0", "JSON object"),
    ("/generate", '{"prompt": "a", "stop": "' + "w" * 600_000 + '"}', "stop.0", "at most 256 characters"),
    ("/generate", '{"prompt": "a", "stop": ["b", ""]}', "stop.1", "at least 1 character"),
    ("/generate", '{"prompt": "a", "stop": ""}', "stop.0", "at least 1 character"),
    ("/generate", json.dumps({"prompt": "a", "stop": ["b"] * 17}), "stop", "at most 16 items"),
    ("/generate", '{"prompt": "a", "stop": [1]}', "stop.0", "valid string"),
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
    ("/v1/completions", json.dumps({"model": "m", "prompt": ["x"] * 65}), None, "at most 64 items"),
    ("/v1/chat/completions", f'{{"model": "{HALF}", "messages": []}}', None, "not valid JSON"),
    ("/v1/chat/completions", "{" + CHAT + ', "stop": ""}', "stop.0", "at least 1 character"),
    ("/jobs", json.dumps(dict.fromkeys(map(str, range(MAX_FIELDS + 1)), 0)), None, f"at most {MAX_FIELDS} are"),
    ("/jobs", '{"seed": 1' + "0" * 300 + "}", "seed", "less than or equal"),
    ("/classify", '{"text": "a", "labels": ["one", "one "]}', "labels", "two of the labels are the same"),
    ("/classify", '{"text": "a", "labels": ["one", " "]}', "labels", "one of the labels is empty"),
    ("/classify", json.dumps({"text": "a", "labels": ["one"]}), "labels", "at least 2 items"),
    ("/classify", json.dumps({"text": "a", "labels": ["one", "w" * 101]}), "labels.1", "at most 100 characters"),
    ("/tokens", '{"name": "notes", "scopes": ["everything"]}', "scopes.0", "'ingest'"),
    ("/status/snooze", '{"minutes": 1e400}', "minutes", "finite number"),
    (
        "/v1/fine_tuning/jobs",
        '{"model": "m", "training_file": "f", "hyperparameters": {"learning_rate_multiplier": 1e400}}',
        None,
        "learning_rate_multiplier",
    ),
]


def test_it_is_refused_in_few_words(shared: InProcessApp, subtests: pytest.Subtests) -> None:
    for path, body, param, says in ROWS:
        with subtests.test(path, body=body[:60]):
            response = shared.post(path, content=body, headers={"content-type": "application/json"})
            document = assert_problem(response, 422, "invalid_value")
            assert says in document["detail"]
            assert param is None or document["error"]["param"] == param
            assert len(response.content) < 4_000, "the input is not quoted in bulk"


def test_what_are_no_tokens(shared: InProcessApp) -> None:
    prompts: list[Any] = [[-1], [2**31], [[]], [], ["x", [1]], [1.5], [True], [[1], "x"]]
    for prompt in prompts:
        response = shared.post("/v1/completions", json={"model": "m", "prompt": prompt, "max_tokens": 1})
        assert_problem(response, 422, "invalid_value")


def test_allow_names_every_method_of_a_path(shared: InProcessApp) -> None:
    response = shared.request("PUT", "/texts")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, POST"


def test_words_count_for_nothing_however_they_are_written(shared: InProcessApp) -> None:
    words = '{"a", [b]}, \\\\ "' * 40_000  # 200,000 marks, and more quotes and backslashes
    response = shared.post("/texts", json=[{"text": words}, {"text": f"{words} again"}])
    assert response.status_code == 201, response.text


def test_of_large_bodies_an_app_sends_two_at_once() -> None:
    small, large, chunked = {"content-length": "65536"}, {"content-length": "65537"}, {"transfer-encoding": "chunked"}
    assert [_weight(Headers(one)) for one in (small, large, chunked, {})] == [1, 8, 8, 1]
