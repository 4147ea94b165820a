"""Kinds of example at POST /texts: plain, a prompt with its completion, a text with its label; anything else is out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.in_process_app import Document, InProcessApp, assert_problem, in_process_app

LIMIT = 1000
NDJSON = "application/x-ndjson"

PLAIN = {"text": "Wind west.", "source": "notes"}
COMPLETION = {"prompt": "Who has the watch?", "completion": " Anna until four.", "source": "chat"}
LABELLED = {"text": "Two mugs of tea.", "label": "positive", "source": "diary"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InProcessApp]:
    with in_process_app(tmp_path / "data", max_text_bytes=LIMIT) as made:
        yield made


def count(api: InProcessApp) -> int:
    return api.services.store.texts.counts().texts


def send_lines(api: InProcessApp, items: list[Any]) -> Any:
    content = "\n".join(json.dumps(item) for item in items).encode()
    return api.post("/texts", content=content, headers={"content-type": NDJSON})


def shown(api: InProcessApp, identity: str) -> Document:
    document: Document = api.get(f"/texts/{identity}").json()
    return document


@pytest.mark.parametrize("lines", [False, True], ids=["list", "NDJSON"])
def test_every_kind_is_stored_and_shown(api: InProcessApp, lines: bool) -> None:
    items = [PLAIN, COMPLETION, LABELLED]
    response = send_lines(api, items) if lines else api.post("/texts", json=items)
    assert response.status_code == 201, response.text
    found = [shown(api, identity) for identity in response.json()["ids"]]
    assert [(f["kind"], f["text"], f["completion"], f["label"], f["source"], f["words"]) for f in found] == [
        ("plain", "Wind west.", None, None, "notes", 2),
        ("completion", "Who has the watch?", " Anna until four.", None, "chat", 7),
        ("labelled", "Two mugs of tea.", None, "positive", "diary", 4),
    ]
    again = send_lines(api, items).json()
    assert (again["ids"], again["created"]) == (response.json()["ids"], 0)


def test_a_listed_text_has_all_its_fields(api: InProcessApp) -> None:
    [identity] = api.add("Wind west, glass rising.", source="notes")
    [item] = api.get("/texts").json()["data"]
    assert item == shown(api, identity)
    assert isinstance(item.pop("held_out"), bool)
    assert item == {
        "id": identity,
        "source": "notes",
        "kind": "plain",
        "text": "Wind west, glass rising.",
        "completion": None,
        "label": None,
        "messages": None,
        "words": 4,
        "created_at": "2026-03-01T12:00:00Z",
    }


def test_one_example_alone_needs_no_source(api: InProcessApp) -> None:
    for item in ({"prompt": "a", "completion": "b"}, {"text": "a", "label": "negative"}):
        response = api.post("/texts", json=item)
        assert response.status_code == 201, response.text
        assert shown(api, response.json()["ids"][0])["source"] == "unknown"
    assert count(api) == 2


def test_the_same_words_as_another_kind_are_another_text(api: InProcessApp) -> None:
    items = [
        {"text": "a"},
        {"prompt": "a", "completion": "positive"},
        {"prompt": "a", "completion": "negative"},
        {"text": "a", "label": "positive"},
        {"text": "a", "label": "negative"},
        {"text": "apositive"},
    ]
    assert api.post("/texts", json=items).json()["created"] == len(items)


def test_odd_completions_come_out_as_they_went_in(api: InProcessApp) -> None:
    for words in ("a\0b", "\0", " leading, trailing \r\n\t", "one\u2028two", "{label} {text} {", "\U0010ffff\ufffe"):
        response = send_lines(api, [{"prompt": words, "completion": words}])
        assert response.status_code == 201, response.text
        item = shown(api, response.json()["ids"][0])
        assert (item["text"], item["completion"]) == (words, words)


TOGETHER = "cannot be combined with"
FAULTY = [
    pytest.param({"prompt": "a"}, "completion: Field required", "completion", id="prompt alone"),
    pytest.param({"completion": "a"}, "prompt: Field required", "prompt", id="completion alone"),
    pytest.param({"label": "positive"}, "text: Field required", "text", id="label alone"),
    pytest.param({"prompt": "a", "completion": " \n"}, "The completion is empty", "completion", id="blank completion"),
    pytest.param({"prompt": "a", "completion": ""}, "The completion is empty", "completion", id="empty completion"),
    pytest.param({"prompt": "", "completion": "a"}, "The prompt is empty", "prompt", id="empty prompt"),
    pytest.param({"text": " ", "label": "positive"}, "The text is empty", "text", id="empty labelled text"),
    pytest.param({"prompt": "a", "completion": 5}, "valid string (got 5)", "completion", id="number"),
    pytest.param({"prompt": "a", "completion": None}, "valid string (got None)", "completion", id="null"),
    pytest.param({"text": "a", "label": None}, "valid string (got None)", "label", id="null as label"),
    pytest.param({"text": "a", "label": ["positive"]}, "valid string", "label", id="list as label"),
    pytest.param({"text": "a", "prompt": "b"}, f"prompt {TOGETHER} text", "prompt", id="text and prompt"),
    pytest.param({"text": "a", "completion": "b"}, f"completion {TOGETHER} text", "completion", id="with text"),
    pytest.param(
        {"prompt": "a", "completion": "b", "label": "positive"},
        f"completion {TOGETHER} label",
        "completion",
        id="completion and label",
    ),
    pytest.param(
        {"text": "a", "prompt": "a", "completion": "b", "label": "positive"}, TOGETHER, "completion", id="all of them"
    ),
    pytest.param({"prompt": "a", "completion": "b", "x": 1}, "x: Extra inputs are not", "x", id="unknown field"),
    pytest.param({"text": "a", "label": " "}, "The label is empty", "label", id="empty label"),
    pytest.param({"text": "a", "label": "w" * 101}, "at most 100 characters", "label", id="long label"),
]


@pytest.mark.parametrize(("faulty", "says", "param"), FAULTY)
def test_one_faulty_example_keeps_all_of_them_out(api: InProcessApp, faulty: Any, says: str, param: str) -> None:
    alone = assert_problem(api.post("/texts", json=faulty), 422, "invalid_value")
    assert says in alone["detail"] and alone["error"]["param"] == param
    in_list = assert_problem(api.post("/texts", json=[PLAIN, COMPLETION, faulty]), 422, "invalid_value")
    assert in_list["detail"].startswith("item 3: ") and says in in_list["detail"]
    in_lines = assert_problem(send_lines(api, [faulty, LABELLED]), 422, "invalid_value")
    assert in_lines["detail"].startswith("line 1: ") and says in in_lines["detail"]
    assert count(api) == 0


def test_a_completion_counts_with_its_prompt(api: InProcessApp) -> None:
    prompt = "\N{WAVING HAND SIGN}" * 100
    longest = {"prompt": prompt, "completion": "a" * (LIMIT - 400)}
    assert api.post("/texts", json=longest).status_code == 201
    too_long = {"prompt": prompt, "completion": "a" * (LIMIT - 399)}
    document = assert_problem(api.post("/texts", json=[PLAIN, too_long]), 413, "too_large")
    assert "item 2: The prompt with its completion is 1,001 bytes" in document["detail"]
    assert "max_text_bytes" in document["detail"]
    assert count(api) == 1


def test_a_refused_label_is_said_back_short(api: InProcessApp) -> None:
    response = api.post("/texts", json={"text": "a", "label": "l" * 100_000})
    assert_problem(response, 422, "invalid_value")
    assert len(response.content) < 1000


def test_a_label_is_of_the_owners_choice_and_short(api: InProcessApp) -> None:
    assert api.post("/texts", json={"text": "a", "label": "to be paid"}).status_code == 201
    assert_problem(api.post("/texts", json={"text": "a", "label": "x" * 101}), 422, "invalid_value")
    assert_problem(api.post("/texts", json={"text": "a", "label": ""}), 422, "invalid_value")


def test_a_deleted_completion_is_gone_from_the_disk(api: InProcessApp) -> None:
    marker = "xyzzy-plugh"
    [identity] = api.post("/texts", json={"prompt": "a", "completion": marker * 20}).json()["ids"]
    api.delete(f"/texts/{identity}")
    files = [path for path in api.services.folder.root.iterdir() if path.is_file()]
    assert files and not any(marker.encode() in path.read_bytes() for path in files)


def test_the_documents_examples_are_accepted_and_cover_the_kinds(api: InProcessApp) -> None:
    content = api.get("/openapi.json").json()["paths"]["/texts"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert api.post("/texts", json=example["value"]).status_code == 201
    kinds = {item["kind"] for item in api.get("/texts").json()["data"]}
    assert kinds == {"plain", "completion", "labelled", "chat"}
