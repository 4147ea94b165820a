"""Small requests that would cost much, and numbers and characters that would break things: each gets a clear error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from pocketllm.api.bodies import MAX_FIELDS
from pocketllm.api.security.guard import _weight
from tests.support.in_process_app import InProcessApp, assert_problem, in_process_app

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessApp]:
    with in_process_app(tmp_path_factory.mktemp("hostile") / "data") as made:
        yield made


HALF = "\\ud83d"  # half of a pair


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/generate", '{"messages": [' + "0," * 100_000 + "0]}", "messages.0", "JSON object"),
        ("/generate", '{"prompt": "a", "stop": "' + "w" * 600_000 + '"}', "stop.0", "at most 256 characters"),
        ("/generate", '{"prompt": "a", "stop": [""]}', "stop.0", "at least 1 character"),
        ("/generate", '{"prompt": "a", "stream": 0}', "stream", "valid boolean"),
        ("/generate", '{"prompt": "a", "temperature": NaN}', "temperature", "finite number"),
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
        ("/v1/chat/completions", f'{{"model": "{HALF}", "messages": []}}', None, "not valid JSON"),
        ("/jobs", json.dumps(dict.fromkeys(map(str, range(MAX_FIELDS + 1)), 0)), None, f"at most {MAX_FIELDS} are"),
        ("/jobs", '{"now": 1}', "now", "valid boolean"),
        ("/status/what-if", '{"readings": {"battery": NaN}}', "readings.battery", "finite number"),
        ("/status/what-if", '{"readings": {"battery": 1e400}}', "readings.battery", "finite number"),
        (
            "/v1/fine_tuning/jobs",
            '{"model": "m", "training_file": "f", "hyperparameters": {"learning_rate_multiplier": 1e400}}',
            None,
            "learning_rate_multiplier",
        ),
    ],
)
def test_it_is_refused_in_few_words(api: InProcessApp, path: str, body: str, param: str | None, says: str) -> None:
    response = api.post(path, content=body, headers=JSON)
    document = assert_problem(response, 422, "invalid_value")
    assert says in document["detail"]
    assert param is None or document["error"]["param"] == param
    assert len(response.content) < 4_000, "the input is not quoted in bulk"


@pytest.mark.parametrize("after", [2**63, 2**64, 10**30])
def test_an_event_number_that_no_database_has(api: InProcessApp, after: int) -> None:
    assert_problem(api.get("/events", params={"after": after}), 422, "invalid_value")
    assert api.get("/events", headers={"last-event-id": str(after)}).status_code == 200


@pytest.mark.parametrize("number", ["\u0663", "1" * 5000, "-1", "1.5", ""])
def test_what_is_no_event_number_counts_as_none(api: InProcessApp, number: str) -> None:
    assert api.get("/events", headers={"last-event-id": number.encode()}).status_code == 200


def test_allow_names_every_method_of_a_path(api: InProcessApp) -> None:
    response = api.request("PUT", "/texts")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, POST"


def test_every_reference_in_the_document_leads_somewhere(api: InProcessApp) -> None:
    document = api.app.openapi()

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for value in part.values():
                yield from references(value)
        elif isinstance(part, list):
            for value in part:
                yield from references(value)

    found = set(references(document))
    assert found
    for reference in found:
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in place, reference
            place = place[name]


@pytest.fixture
def as_app(tmp_path: Path) -> Iterator[tuple[InProcessApp, str]]:
    """A daemon with an app that may add five texts a day."""
    with in_process_app(tmp_path / "data", app_texts_per_day=5) as made:
        token = made.post("/tokens", json={"name": "notes", "scopes": ["ingest"]}).json()["token"]
        yield made, token


def test_words_count_for_nothing_however_they_are_written(api: InProcessApp) -> None:
    words = '{"a", [b]}, \\\\ "' * 40_000  # 200,000 marks, and more quotes and backslashes
    response = api.post("/texts", json=[{"text": words}, {"text": f"{words} again"}])
    assert response.status_code == 201, response.text


def test_of_large_bodies_an_app_sends_two_at_once() -> None:
    small, large, chunked = {"content-length": "65536"}, {"content-length": "65537"}, {"transfer-encoding": "chunked"}
    assert [_weight(Headers(one)) for one in (small, large, chunked, {})] == [1, 8, 8, 1]


def test_an_app_is_not_told_what_was_there_already(as_app: tuple[InProcessApp, str]) -> None:
    api, token = as_app
    guess = {"text": "The owner's own words.", "source": "diary"}
    api.post("/texts", json=guess)
    for _ in range(2):
        answer = api.post("/texts", json=[guess, guess], token=token).json()
        assert (answer["created"], answer["duplicates"]) == (1, 1)
    assert len(api.get("/texts").json()["data"]) == 1


def test_an_app_may_add_so_many_texts_a_day_and_its_texts_can_be_deleted(as_app: tuple[InProcessApp, str]) -> None:
    api, token = as_app
    texts = [{"text": f"words {number}"} for number in range(5)]
    assert api.post("/texts", json=texts, token=token).status_code == 201
    more = {"text": "one more"}
    assert_problem(api.post("/texts", json=more, token=token), 429, "too_many_texts")
    assert api.post("/texts", json=more).status_code == 201
    receipt = api.request("DELETE", "/apps/notes/texts").json()
    assert (receipt["texts"], receipt["erased"]) == (5, True)
    assert [one["text"] for one in api.get("/texts").json()["data"]] == ["one more"]
    assert api.get(f"/deletions/{receipt['id']}").json() == receipt
