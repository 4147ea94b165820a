"""What goes in at POST /texts comes out the same, once, and only when all of it is sound."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pocketllm.api.bodies import MAX_TEXTS
from tests.support.daemon.in_process_app import InProcessApp, assert_problem

NDJSON = "application/x-ndjson"


def count(api: InProcessApp) -> int:
    return api.services.store.texts.counts().texts


def stored(api: InProcessApp, ids: Sequence[str]) -> list[tuple[str, str]]:
    """The texts and sources behind these ids."""
    documents = [api.get(f"/texts/{identity}").json() for identity in ids]
    return [(document["text"], document["source"]) for document in documents]


def send(api: InProcessApp, content: bytes, kind: str, query: str = "") -> Any:
    return api.post(f"/texts{query}", content=content, headers={"content-type": kind})


#: Content, its type, the query, and what is stored of it.
BODIES = [
    ('{"text": "Wind west.", "source": "notes"}', "application/json", "", [("Wind west.", "notes")]),
    ('{"text": "Wind west."}', "application/json", "", [("Wind west.", "unknown")]),
    ('[{"text": "a"}, {"text": "b", "source": "s"}]', "application/json", "", [("a", "unknown"), ("b", "s")]),
    ('\n [{"text": "c"}]', "Application/JSON; charset=utf-8", "", [("c", "unknown")]),
    ('{"text": "d"}\n{"text": "e", "source": "s"}\n', NDJSON, "", [("d", "unknown"), ("e", "s")]),
    ('\r\n{"text": "f"}\r\n\r\n{"text": "g"}', NDJSON, "", [("f", "unknown"), ("g", "unknown")]),
    ('{"text": "h"}', "application/jsonl", "", [("h", "unknown")]),
    ("Wind west.\r\nGlass rising. \n", "text/plain", "", [("Wind west.\r\nGlass rising. \n", "unknown")]),
    ("Wind west.", "text/plain; charset=utf-8", "?source=my%20notes", [("Wind west.", "my notes")]),
    ('{"text": "still plain"}', "text/plain", "", [('{"text": "still plain"}', "unknown")]),
]


def test_all_kinds_of_bodies(api: InProcessApp, subtests: pytest.Subtests) -> None:
    for content, kind, query, expected in BODIES:
        with subtests.test(content, kind=kind):
            response = send(api, content.encode(), kind, query)
            assert response.status_code == 201
            assert response.text.endswith("}\n")
            answer = response.json()
            assert (answer["created"], answer["duplicates"]) == (len(expected), 0)
            assert stored(api, answer["ids"]) == expected


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
SOURCES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
#: What a separator, an escape or a terminator could break.
ODD = [
    "a\0b",
    "\0",
    "one\N{LINE SEPARATOR}two\N{PARAGRAPH SEPARATOR}three\x85four\x0bfive\x0csix\x1cseven",
    " leading, trailing \r\n\t",
    '"quotes" \\ and % and \' and ; DROP TABLE text; --',
    "\N{ZERO WIDTH NO-BREAK SPACE}marked, \U0010ffff\ufffe",
]


def test_whatever_texts_come_in_come_out_the_same(shared: InProcessApp) -> None:
    @settings(max_examples=60, deadline=None)
    @given(
        items=st.lists(st.tuples(TEXTS, SOURCES), min_size=1, max_size=5),
        ascii_only=st.booleans(),
        kind=st.sampled_from(["application/json", NDJSON]),
    )
    @example(items=[(text, "odd") for text in ODD], ascii_only=True, kind="application/json")
    @example(items=[(text, "odder") for text in ODD], ascii_only=False, kind="application/json")
    @example(items=[(text, "oddest") for text in ODD], ascii_only=False, kind=NDJSON)
    def many(items: list[tuple[str, str]], ascii_only: bool, kind: str) -> None:
        documents = [{"text": text, "source": source} for text, source in items]
        if kind == NDJSON:
            content = "\n".join(json.dumps(document, ensure_ascii=ascii_only) for document in documents)
        else:
            content = json.dumps(documents, ensure_ascii=ascii_only)
        response = send(shared, content.encode(), kind)
        assert response.status_code == 201, response.text
        assert stored(shared, response.json()["ids"]) == items
        again = send(shared, content.encode(), kind).json()
        assert again == {"ids": response.json()["ids"], "created": 0, "duplicates": len(items)}

    many()


def test_whatever_plain_text_comes_in_comes_out_the_same(shared: InProcessApp) -> None:
    def plain(text: str, source: str) -> None:
        headers = {"content-type": "text/plain"}
        response = shared.post("/texts", params={"source": source}, content=text.encode(), headers=headers)
        assert response.status_code == 201, response.text
        assert stored(shared, response.json()["ids"]) == [(text, source)]

    for text in ODD:
        plain(text, "plain")
    settings(max_examples=40, deadline=None)(given(text=TEXTS, source=SOURCES)(plain))()


#: Content, its type, and what is said of it.
UNREADABLE = [
    (b"", "application/json", "not valid JSON"),
    (b'{"text": "a\\udc00b"}', NDJSON, "line 1: "),
    (b"[]", "application/json", "contains no text"),
    (b"\n \n", NDJSON, "contains no text"),
    (b'{"text": "a"}\n\n{"text": "b"\n{"text": "c"}', NDJSON, "line 3: This is not"),
    (b'{"text": "a"} {"text": "b"}', NDJSON, "line 1: "),
    (b'{"text": "caf\xe9"}', "application/json", "byte 13 is 0xe9. Send UTF-8"),
    (b"caf\xe9", "text/plain", "not UTF-8: byte 3"),
    (b"\xed\xa0\x80", "text/plain", "not UTF-8"),
    ("a".encode("utf-16"), "text/plain", "not UTF-8"),
    (b" \n", "text/plain", "empty"),
    (b"", "text/plain", "empty"),
]


def test_bodies_that_cannot_be_read(api: InProcessApp, subtests: pytest.Subtests) -> None:
    for content, kind, says in UNREADABLE:
        with subtests.test(repr(content[:40]), kind=kind):
            assert says in assert_problem(send(api, content, kind), 422, "invalid_value")["detail"]
    assert count(api) == 0


def test_a_long_list_is_stored_in_its_order(api: InProcessApp) -> None:
    texts = [f"note {number}" for number in range(2000)]
    random.Random(1).shuffle(texts)
    response = api.post("/texts", json=[{"text": text} for text in texts])
    assert response.json()["created"] == len(texts)
    rows = {row.id: row.text for row in api.services.store.texts.page(after=None, limit=len(texts))}
    assert [rows[identity] for identity in response.json()["ids"]] == texts


def test_too_long_a_list_is_refused_as_a_whole(api: InProcessApp) -> None:
    items = ['{"text":"a"}'] * (MAX_TEXTS + 1)
    for content, kind in ((f"[{','.join(items)}]", "application/json"), ("\n".join(items), NDJSON)):
        document = assert_problem(send(api, content.encode(), kind), 422, "invalid_value")
        assert f"at most {MAX_TEXTS:,}" in document["detail"]
    assert count(api) == 0


def test_a_text_for_a_deleted_database_is_not_answered_201(api: InProcessApp) -> None:
    api.add("from before")
    shutil.rmtree(api.services.folder.root)
    response = api.post("/texts", json={"text": "where to?"})
    problem = assert_problem(response, 503, "database_unusable")
    assert "moved, replaced or deleted" in problem["detail"] and int(response.headers["retry-after"]) > 0


def test_four_characters_behind_the_dash_are_enough_where_no_other_id_begins_like_it(api: InProcessApp) -> None:
    ids = api.post("/texts", json=[{"text": f"Note {number}."} for number in range(1000)]).json()["ids"]
    like = Counter(identity[:9] for identity in ids)
    chosen = next(identity for identity in ids if like[identity[:9]] == 1)
    short, common = chosen[:9], next(short for short, number in like.items() if number > 1)
    assert api.get(f"/texts/{short}").json()["id"] == chosen
    assert "Give more characters" in assert_problem(api.get(f"/texts/{common}"), 404, "not_found")["detail"]
    assert_problem(api.get(f"/texts/{chosen[5:]}"), 404, "not_found")
    assert api.delete(f"/texts/{short}").json()["id"] == chosen
    assert_problem(api.get(f"/texts/{short}"), 404, "not_found")


def test_what_abbreviates_any_id_abbreviates_none(api: InProcessApp) -> None:
    [only] = api.add("The only text.")
    for short in ("text", "text-", only[:6], only[:8]):
        assert_problem(api.delete(f"/texts/{short}"), 404, "not_found")
    assert api.delete(f"/texts/{only[:9]}").json()["id"] == only
