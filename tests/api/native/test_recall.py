"""Recall with a real daemon and a tiny model: what is put before a prompt, and for whom."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pocketllm.api.native.recall import PASSAGES, front
from tests.support.in_process_app import assert_problem
from tests.support.trained_daemon import TrainedDaemon, trained_daemon

pytestmark = pytest.mark.slow

FERRY, OTHER = "The ferry leaves at nine.", "Two mugs of tea."


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedDaemon]:
    with trained_daemon(tmp_path_factory.mktemp("recall")) as made:
        yield made


def answer(trained: TrainedDaemon, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    request = {"max_tokens": 6, "temperature": 0, "seed": 1, "adapter": "base"} | body
    response = trained.daemon.client.post("/generate", json=request, headers=headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("tokens_per_second", "recalled")}


def add(trained: TrainedDaemon, *texts: str, headers: dict[str, str] | None = None) -> list[str]:
    body = [{"text": text} for text in texts]
    return list(trained.daemon.client.post("/texts", json=body, headers=headers).json()["ids"])


def app(trained: TrainedDaemon, name: str) -> dict[str, str]:
    made = trained.daemon.client.post("/tokens", json={"name": name, "scopes": ["generate", "ingest"]}).json()
    return {"Authorization": f"Bearer {made['token']}"}


@pytest.mark.smoke
def test_passages_are_read_before_the_prompt_and_named(trained: TrainedDaemon) -> None:
    ferry, _ = add(trained, FERRY, OTHER)
    found = answer(trained, prompt="When does the ferry", context="recall")
    assert found["recalled"] == [{"text_id": ferry, "passage": FERRY}]
    plain = answer(trained, prompt=front([FERRY]) + "When does the ferry")
    assert without_time(found) == without_time(plain) and plain["recalled"] == []


def test_a_chat_reads_them_in_its_last_message(trained: TrainedDaemon) -> None:
    add(trained, FERRY)
    before = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    question = {"role": "user", "content": "When does the ferry leave?"}
    found = answer(trained, messages=[*before, question], context="recall")
    read = question | {"content": f"From my notes:\n\n{FERRY}\n\n{question['content']}"}
    assert without_time(found) == without_time(answer(trained, messages=[*before, read]))
    assert [one["passage"] for one in found["recalled"]] == [FERRY]
    asked = {"model": "pocketllm:base", "messages": [*before, question], "max_tokens": 3, "context": "recall"}
    openai = trained.daemon.client.post("/v1/chat/completions", json=asked).json()
    assert openai["recalled"] == found["recalled"] and "warnings" not in openai
    assert openai["usage"]["prompt_tokens"] == found["prompt_tokens"]


def test_a_stream_names_them_and_what_was_ignored_once(trained: TrainedDaemon) -> None:
    add(trained, FERRY)
    question = [{"role": "user", "content": "When does the ferry leave?"}]
    asked = {"model": "pocketllm:base", "messages": question, "max_tokens": 6, "context": "recall", "top_k": 3}
    whole = trained.daemon.client.post("/v1/chat/completions", json=asked).json()
    said = trained.daemon.client.post("/v1/chat/completions", json=asked | {"stream": True}).text
    first, *rest = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    assert first["recalled"] == whole["recalled"] and first["warnings"] == whole["warnings"]
    assert len(rest) > 2 and not any({"recalled", "warnings"} & set(chunk) for chunk in rest)


def test_where_nothing_fits_nothing_is_put_before(trained: TrainedDaemon) -> None:
    found = answer(trained, prompt="Xylophone", context="recall")
    assert found["recalled"] == [] and without_time(found) == without_time(answer(trained, prompt="Xylophone"))


def test_an_app_gets_no_words_of_others(trained: TrainedDaemon) -> None:
    add(trained, "The safe opens with 4711.")
    notes, other = app(trained, "notes"), app(trained, "other")
    add(trained, "The safe is behind the clock.", headers=notes)
    asked: dict[str, Any] = {"prompt": "Safe", "context": "recall"}
    assert len(answer(trained, **asked)["recalled"]) == 2
    for headers in (notes, other):
        assert_problem(trained.daemon.client.post("/generate", json=asked, headers=headers), 403, "out_of_scope")
    assert trained.daemon.client.get("/texts", params={"query": "safe"}, headers=notes).status_code == 403


def test_a_deleted_text_is_not_recalled(trained: TrainedDaemon) -> None:
    [identity] = add(trained, "The marmalade is in the cellar.")
    asked: dict[str, Any] = {"prompt": "Marmalade", "context": "recall"}
    assert answer(trained, **asked)["recalled"]
    trained.daemon.client.delete(f"/texts/{identity}")
    assert answer(trained, **asked)["recalled"] == []


def test_the_best_passages_are_recalled_and_no_more(trained: TrainedDaemon) -> None:
    add(trained, *(f"Buoy {number} rings." for number in range(PASSAGES + 2)))
    found = answer(trained, prompt="Buoy 4 rings", context="recall")["recalled"]
    assert len(found) == PASSAGES and found[0]["passage"] == "Buoy 4 rings."


def test_another_context_is_refused(trained: TrainedDaemon) -> None:
    response = trained.daemon.client.post("/generate", json={"prompt": "x", "context": "everything"})
    assert_problem(response, 422, "invalid_value")


def test_texts_are_searched(trained: TrainedDaemon) -> None:
    client = trained.daemon.client
    add(trained, "The lighthouse keeper plays the oboe.", "The oboe is out of tune, says the lighthouse keeper's wife.")
    page = client.get("/texts", params={"query": "oboe tune"}).json()
    assert [one["text"][:8] for one in page["data"]] == ["The oboe", "The ligh"]
    assert page["has_more"] is False and page["next"] is None
    first = client.get("/texts", params={"query": "oboe tune", "limit": 1}).json()
    assert first["has_more"] and first["data"] == page["data"][:1]
    rest = client.get("/texts", params={"query": "oboe tune", "after": first["next"]}).json()
    assert rest["data"] == page["data"][1:] and not rest["has_more"]
    assert client.get("/texts", params={"query": "?"}).json()["data"] == []
    assert_problem(client.get("/texts", params={"query": "oboe", "after": "x"}), 404, "not_found")
