"""Kinds of example at POST /texts: plain, a prompt with its completion, a text with its label; anything else is out."""

import json
from typing import Any

import pytest

from tests.support.daemon.in_process_app import Document, InProcessApp, assert_problem

LIMIT = 1000

PLAIN = {"text": "Wind west.", "source": "notes"}
COMPLETION = {"prompt": "Who has the watch?", "completion": " Anna until four.", "source": "chat"}
LABELLED = {"text": "Two mugs of tea.", "label": "to be paid", "source": "diary"}


@pytest.fixture
def settings() -> Document:
    return {"max_text_bytes": LIMIT}


def count(api: InProcessApp) -> int:
    return api.services.store.texts.counts().texts


def send_lines(api: InProcessApp, items: list[Any]) -> Any:
    content = "\n".join(json.dumps(item) for item in items).encode()
    return api.post("/texts", content=content, headers={"content-type": "application/x-ndjson"})


def test_every_kind_is_stored_and_shown(api: InProcessApp) -> None:
    items = [PLAIN, COMPLETION, LABELLED]
    response = api.post("/texts", json=items)
    assert response.status_code == 201, response.text
    ids = response.json()["ids"]
    found = [api.get(f"/texts/{identity}").json() for identity in ids]
    listed = api.get("/texts").json()["data"]
    assert sorted(listed, key=lambda one: ids.index(one["id"])) == found
    for one in found:
        assert (one["learned"], one["file"], one["created_at"]) == (False, None, "2026-03-01T12:00:00Z")
    assert [(f["kind"], f["text"], f["completion"], f["label"], f["source"], f["words"]) for f in found] == [
        ("plain", "Wind west.", None, None, "notes", 2),
        ("completion", "Who has the watch?", " Anna until four.", None, "chat", 7),
        ("labelled", "Two mugs of tea.", None, "to be paid", "diary", 4),
    ]
    assert send_lines(api, items).json() == {"ids": ids, "created": 0, "duplicates": 3}


TOGETHER = "cannot be combined with"
#: What is no example, the sentence about it, and the field that is to blame.
FAULTY: list[tuple[Any, str, str | None]] = [
    ({"text": ""}, "The text is empty", "text"),
    ({"text": "\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}\n\t"}, "The text is empty", "text"),
    ({"text": "a", "tags": ["b"]}, "tags: Extra inputs are not permitted", "tags"),
    ("a", "JSON object (got 'a')", None),
    ({"prompt": "a"}, "completion: Field required", "completion"),
    ({"prompt": "a", "completion": " \n"}, "The completion is empty", "completion"),
    ({"prompt": "", "completion": "a"}, "The prompt is empty", "prompt"),
    ({"text": "a", "label": " "}, "The label is empty", "label"),
    ({"text": "a", "prompt": "b"}, f"prompt {TOGETHER} text", "prompt"),
    ({"text": "a", "completion": "b"}, f"completion {TOGETHER} text", "completion"),
    ({"prompt": "a", "completion": "b", "label": "c"}, f"completion {TOGETHER} label", "completion"),
    ({"text": "a", "prompt": "a", "completion": "b", "label": "c"}, TOGETHER, "completion"),
]


def test_one_faulty_example_keeps_all_of_them_out(api: InProcessApp, subtests: pytest.Subtests) -> None:
    for faulty, says, param in FAULTY:
        with subtests.test(json.dumps(faulty)):
            alone = api.post("/texts", content=json.dumps(faulty), headers={"content-type": "application/json"})
            assert says in assert_problem(alone, 422, "invalid_value")["detail"]
            assert alone.json()["error"]["param"] == param
            for position in (0, 1, 2):
                items: list[Any] = [PLAIN, COMPLETION]
                items.insert(position, faulty)
                for place, response in (("item", api.post("/texts", json=items)), ("line", send_lines(api, items))):
                    document = assert_problem(response, 422, "invalid_value")
                    assert document["detail"].startswith(f"{place} {position + 1}: ") and says in document["detail"]
                    assert document["error"]["param"] == param
    assert count(api) == 0


def test_the_longest_example_is_counted_in_bytes_a_completion_with_its_prompt(api: InProcessApp) -> None:
    for number, character in enumerate(("a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{WAVING HAND SIGN}"), 1):
        longest = character * (LIMIT // len(character.encode()))
        assert api.post("/texts", json={"text": longest}).status_code == 201
        prompt, completion = longest[: len(longest) // 2], longest[len(longest) // 2 :]
        assert api.post("/texts", json={"prompt": prompt, "completion": completion}).status_code == 201
        too_long = {
            "The text": {"text": f"{longest}!"},
            "The prompt with its completion": {"prompt": prompt, "completion": f"{completion}!"},
        }
        for name, example in too_long.items():
            document = assert_problem(api.post("/texts", json=[PLAIN, example]), 413, "too_large")
            assert f"item 2: {name} is 1,001 bytes" in document["detail"] and "max_text_bytes" in document["detail"]
            assert document["error"]["param"] == next(iter(example))
        plain = api.post("/texts", content=f"{longest}!".encode(), headers={"content-type": "text/plain"})
        assert "1,001 bytes" in assert_problem(plain, 413, "too_large")["detail"]
        assert count(api) == 2 * number
