"""/suggest, /classify and recall with a real daemon that has learned once.

Texts of one test are there for the next: each uses words of its own, and classifying, which counts examples, comes
first. The tiny model invents words, which are not offered behind an English text.
"""

import json
import math
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pocketllm.api.native.recall import PASSAGES, front
from tests.support.daemon.in_process_app import Document, assert_problem
from tests.support.daemon.trained_daemon import TrainedDaemon, trained_daemon

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedDaemon]:
    with trained_daemon(tmp_path_factory.mktemp("answers")) as made:
        loading = {"context": "Vinden ", "timeout_ms": 1}
        assert_problem(made.daemon.client.post("/suggest", json=loading), 503, "not_in_time")
        assert ask(made, "/suggest", **(loading | {"timeout_ms": 60_000}))["complete"]
        yield made


def ask(trained: TrainedDaemon, path: str, **body: Any) -> Document:
    response = trained.daemon.client.post(path, json=body)
    assert response.status_code == 200, response.text
    document: Document = response.json()
    return document


def add(trained: TrainedDaemon, *texts: str) -> list[str]:
    return list(trained.daemon.client.post("/texts", json=[{"text": text} for text in texts]).json()["ids"])


# Classifying.

QUEUE = "qqqq qqqq"
EXAMPLES = [
    {"text": f"{letter * 4} {letter * size}", "label": label}
    for label, letter in (("queue", "q"), ("zoo", "z"))
    for size in (4, 5, 6)
]


@pytest.mark.smoke
def test_three_examples_of_two_labels_are_enough_and_no_job_is_needed(trained: TrainedDaemon) -> None:
    client = trained.daemon.client
    waiting = client.get("/status").json()["texts"]["new_words"]
    assert_problem(client.post("/classify", json={"text": QUEUE}), 409, "too_few_examples")
    assert client.post("/texts", json=EXAMPLES[:5]).status_code == 201
    refused = client.post("/classify", json={"text": QUEUE, "labels": ["queue", "zoo"]})
    assert "3 of 'queue', 2 of 'zoo'" in assert_problem(refused, 409, "too_few_examples")["detail"]
    assert client.post("/texts", json=EXAMPLES).status_code == 201
    answer = ask(trained, "/classify", text=QUEUE)
    assert (answer["label"], answer["examples"]) == ("queue", 6)
    assert math.isclose(sum(one["probability"] for one in answer["labels"]), 1)
    assert [one["label"] for one in answer["labels"]] == ["queue", "zoo"] and 0 <= answer["accuracy"] <= 1
    assert ask(trained, "/classify", text=QUEUE) == answer
    of_base = ask(trained, "/classify", text=QUEUE, adapter="base")
    assert of_base["adapter"] is None and of_base["labels"] != answer["labels"]
    assert client.get("/status").json()["texts"]["new_words"] == waiting
    listed = client.get("/labels").json()["data"]
    assert {one["label"]: one["examples"] for one in listed} == {"queue": 3, "zoo": 3}
    assert len(listed[0]["newest"]) == 3

    headers = {"Authorization": f"Bearer {trained.daemon.app_token('classifier', 'generate')}"}
    assert_problem(client.post("/classify", json={"text": QUEUE}, headers=headers), 422, "invalid_value")
    named = {"text": QUEUE, "labels": ["zoo", "queue"]}
    told = answer | {"examples": None, "accuracy": None, "threshold": None}  # they grow with what others have labelled
    assert client.post("/classify", json=named, headers=headers).json() == told

    more = [{"text": f"{n} of {label}", "label": str(label), "source": "many"} for label in range(49) for n in range(3)]
    assert client.post("/texts", json=more).status_code == 201
    refused = client.post("/classify", json={"text": QUEUE})
    assert "2 to 50" in assert_problem(refused, 422, "invalid_value")["detail"]
    assert client.post("/classify", json=named, headers=headers).json() == told
    assert client.delete("/texts", params={"source": "many"}).status_code == 200


# Suggesting.


def suggested(trained: TrainedDaemon, **body: Any) -> list[str]:
    return [one["text"] for one in ask(trained, "/suggest", **body)["suggestions"]]


@pytest.mark.smoke
def test_words_of_either_model(trained: TrainedDaemon) -> None:
    answers = {}
    for adapter, name in (("base", None), (trained.adapter.name, trained.adapter.name)):
        answer = ask(trained, "/suggest", context="Vinden", prefix="we", adapter=adapter)
        assert (answer["model"], answer["adapter"]) == ("tiny", name)
        answers[adapter] = answer["suggestions"]
        assert len(answer["suggestions"]) == 3
        assert all(one["text"].startswith("we") and 0 < one["probability"] < 1 for one in answer["suggestions"])
    assert answers["base"] != answers[trained.adapter.name]


def test_the_owners_words_are_offered_before_any_job_unless_they_are_not_wanted(trained: TrainedDaemon) -> None:
    add(trained, "Quillfeather rowed. " * 20)
    asked = {"context": "Then", "prefix": "Qui"}
    assert "Quillfeather" in suggested(trained, **asked)
    assert "Quillfeather" not in suggested(trained, **asked, counts=False)
    assert "Quillfeather" not in suggested(trained, **asked, adapter="base")
    assert suggested(trained, **asked, adapter="base", counts=True)[0] == "Quillfeather"


def test_behind_a_finished_word_nothing_is_replaced(trained: TrainedDaemon) -> None:
    answer = ask(trained, "/suggest", context="Vinden w")
    assert answer["replaces"] == 0 and all(one["text"].startswith(" ") for one in answer["suggestions"])
    assert all(0 < one["probability"] <= one["share"] <= 1 for one in answer["suggestions"])
    assert ask(trained, "/suggest", context="Vinden", prefix="we")["replaces"] == 2
    assert ask(trained, "/suggest", context="Vinden ")["replaces"] == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [("/suggest", {"context": "Vinden ", "timeout_ms": 60_000}), ("/classify", {"text": "q", "labels": ["qu", "zo"]})],
)
def test_a_request_whose_client_is_gone_gives_up_its_place(trained: TrainedDaemon, path: str, body: Document) -> None:
    client = trained.daemon.client
    client.post("/texts", json=[{**one, "label": one["label"][:2]} for one in EXAMPLES])
    ask(trained, path, **body)
    generator = trained.daemon.status()["generator"]["pid"]
    os.kill(generator, signal.SIGSTOP)
    try:
        for _ in range(15):  # more than may wait
            with pytest.raises(httpx.ReadTimeout):
                client.post(path, json=body, timeout=0.15)
    finally:
        os.kill(generator, signal.SIGCONT)
    assert ask(trained, path, **body)


# Recall.

FERRY, OTHER = "The ferry leaves at nine.", "Two mugs of tea."


def generated(trained: TrainedDaemon, **body: Any) -> Document:
    return ask(trained, "/generate", **({"max_tokens": 6, "temperature": 0, "seed": 1, "adapter": "base"} | body))


def without_time(found: Document) -> Document:
    return {name: value for name, value in found.items() if name not in ("tokens_per_second", "recalled")}


@pytest.mark.smoke
def test_passages_are_read_before_the_prompt_and_named(trained: TrainedDaemon) -> None:
    ferry, _ = add(trained, FERRY, OTHER)
    found = generated(trained, prompt="When does the ferry", context="recall")
    assert found["recalled"] == [{"text_id": ferry, "passage": FERRY}]
    plain = generated(trained, prompt=front([FERRY]) + "When does the ferry")
    assert without_time(found) == without_time(plain) and plain["recalled"] == []


def test_a_chat_reads_them_in_its_last_message(trained: TrainedDaemon) -> None:
    add(trained, FERRY)
    before = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    question = {"role": "user", "content": "When does the ferry leave?"}
    found = generated(trained, messages=[*before, question], context="recall")
    read = question | {"content": f"From my notes:\n\n{FERRY}\n\n{question['content']}"}
    assert without_time(found) == without_time(generated(trained, messages=[*before, read]))
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
    found = generated(trained, prompt="Xylophone", context="recall")
    assert found["recalled"] == [] and without_time(found) == without_time(generated(trained, prompt="Xylophone"))


def test_a_deleted_text_is_not_recalled(trained: TrainedDaemon) -> None:
    [identity] = add(trained, "The marmalade is in the cellar.")
    asked: dict[str, Any] = {"prompt": "Marmalade", "context": "recall"}
    assert generated(trained, **asked)["recalled"]
    trained.daemon.client.delete(f"/texts/{identity}")
    assert generated(trained, **asked)["recalled"] == []


def test_the_best_passages_are_recalled_and_no_more(trained: TrainedDaemon) -> None:
    add(trained, *(f"Buoy {number} rings." for number in range(PASSAGES + 2)))
    found = generated(trained, prompt="Buoy 4 rings", context="recall")["recalled"]
    assert len(found) == PASSAGES and found[0]["passage"] == "Buoy 4 rings."
