"""What goes in at POST /texts comes out the same, once, and only when all of it is sound."""

import json
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketllm.api.native.examples import MAX_TEXTS
from tests.support.in_process_app import InProcessApp, assert_problem, in_process_app

LIMIT = 1000
NDJSON = "application/x-ndjson"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InProcessApp]:
    with in_process_app(tmp_path / "data", max_text_bytes=LIMIT) as made:
        yield made


def count(api: InProcessApp) -> int:
    return api.services.store.texts.counts().texts


def stored(api: InProcessApp, ids: Sequence[str]) -> list[tuple[str, str]]:
    """The texts and sources behind these ids."""
    documents = [api.get(f"/texts/{identity}").json() for identity in ids]
    return [(document["text"], document["source"]) for document in documents]


def send(api: InProcessApp, content: bytes, kind: str | None, query: str = "") -> Any:
    return api.post(f"/texts{query}", content=content, headers={"content-type": kind} if kind else {})


@pytest.mark.parametrize(
    ("content", "kind", "query", "expected"),
    [
        ('{"text": "Wind west.", "source": "notes"}', "application/json", "", [("Wind west.", "notes")]),
        ('{"text": "Wind west."}', "application/json", "", [("Wind west.", "unknown")]),
        ('[{"text": "a"}, {"text": "b", "source": "s"}]', "application/json", "", [("a", "unknown"), ("b", "s")]),
        ('\n [{"text": "a"}]', "Application/JSON; charset=utf-8", "", [("a", "unknown")]),
        ('{"text": "a"}\n{"text": "b", "source": "s"}\n', NDJSON, "", [("a", "unknown"), ("b", "s")]),
        ('\r\n{"text": "a"}\r\n\r\n{"text": "b"}', NDJSON, "", [("a", "unknown"), ("b", "unknown")]),
        ('{"text": "a"}', "application/jsonl", "", [("a", "unknown")]),
        ("Wind west.\r\nGlass rising. \n", "text/plain", "", [("Wind west.\r\nGlass rising. \n", "unknown")]),
        ("Wind west.", "text/plain; charset=utf-8", "?source=my%20notes", [("Wind west.", "my notes")]),
        ('{"text": "still plain"}', "text/plain", "", [('{"text": "still plain"}', "unknown")]),
    ],
)
def test_all_kinds_of_bodies(
    api: InProcessApp, content: str, kind: str, query: str, expected: list[tuple[str, str]]
) -> None:
    response = send(api, content.encode(), kind, query)
    assert response.status_code == 201
    assert response.text.endswith("}\n")
    answer = response.json()
    assert (answer["created"], answer["duplicates"]) == (len(expected), 0)
    assert stored(api, answer["ids"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a\0b",
        "\0",
        "naïve café Привет 你好",
        "\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4} \N{FAMILY}\N{ZERO WIDTH JOINER}\N{BOY}",
        "e\N{COMBINING ACUTE ACCENT} is not \N{LATIN SMALL LETTER E WITH ACUTE}",
        "\N{RIGHT-TO-LEFT OVERRIDE}abc",
        "\N{ZERO WIDTH NO-BREAK SPACE}marked",
        "one\N{LINE SEPARATOR}two\N{PARAGRAPH SEPARATOR}three\x85four\x0bfive\x0csix\x1cseven",
        " leading, trailing \r\n\t",
        '"quotes" \\ and % and \' and ; DROP TABLE text; --',
        "\U0010ffff\ufffe",
    ],
)
def test_odd_texts_come_out_as_they_went_in(api: InProcessApp, text: str) -> None:
    bodies = [
        (json.dumps({"text": text, "source": "object"}), "application/json"),
        (json.dumps([{"text": text, "source": "list"}], ensure_ascii=False), "application/json"),
        (json.dumps({"text": text, "source": "lines"}, ensure_ascii=False) + "\n", NDJSON),
        (text, "text/plain"),
    ]
    for content, kind in bodies:
        response = send(api, content.encode(), kind)
        assert response.status_code == 201, response.text
        [(back, _)] = stored(api, response.json()["ids"])
        assert back == text
    assert count(api) == len(bodies)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessApp]:
    with in_process_app(tmp_path_factory.mktemp("shared") / "data") as made:
        yield made


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
SOURCES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


def test_whatever_text_comes_in_comes_out_the_same(shared: InProcessApp) -> None:
    @settings(max_examples=60, deadline=None)
    @given(
        items=st.lists(st.tuples(TEXTS, SOURCES), min_size=1, max_size=5),
        ascii_only=st.booleans(),
        kind=st.sampled_from(["application/json", NDJSON]),
    )
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

    @settings(max_examples=40, deadline=None)
    @given(text=TEXTS, source=SOURCES)
    def plain(text: str, source: str) -> None:
        response = shared.post(
            "/texts", params={"source": source}, content=text.encode(), headers={"content-type": "text/plain"}
        )
        assert response.status_code == 201, response.text
        assert stored(shared, response.json()["ids"]) == [(text, source)]

    many()
    plain()


def test_the_same_text_twice_is_one(api: InProcessApp) -> None:
    body = [{"text": "a", "source": "s"}, {"text": "b", "source": "s"}, {"text": "a", "source": "s"}]
    first = api.post("/texts", json=body)
    assert first.status_code == 201
    ids = first.json()["ids"]
    assert ids[0] == ids[2] != ids[1]
    assert (first.json()["created"], first.json()["duplicates"]) == (2, 1)

    again = api.post("/texts", json=[{"text": "b", "source": "s"}, {"text": "c", "source": "s"}]).json()
    assert again["ids"][0] == ids[1]
    assert (again["created"], again["duplicates"]) == (1, 1)
    assert count(api) == 3


def test_the_same_text_from_two_sources_is_two(api: InProcessApp) -> None:
    for first, second in (
        ({"text": "a", "source": "s"}, {"text": "a", "source": "t"}),
        # The same characters, cut elsewhere.
        ({"text": "b\0c", "source": "a"}, {"text": "c", "source": "a\0b"}),
    ):
        answer = api.post("/texts", json=[first, second]).json()
        assert len(set(answer["ids"])) == 2
        assert answer["created"] == 2


def test_a_text_that_was_deleted_can_come_again(api: InProcessApp) -> None:
    [identity] = api.add("a")
    api.delete(f"/texts/{identity}")
    assert api.add("a") == [identity]
    assert count(api) == 1


SOUND = {"text": "sound"}
FAULTY = [
    pytest.param({"text": " \n\t"}, "empty", "text", id="blank"),
    pytest.param({"text": ""}, "empty", "text", id="empty"),
    pytest.param({"text": "\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"}, "empty", "text", id="blank beyond ASCII"),
    pytest.param({"text": 5}, "valid string (got 5)", "text", id="number"),
    pytest.param({"text": None}, "valid string (got None)", "text", id="null"),
    pytest.param({}, "text: Field required", "text", id="missing"),
    pytest.param({"text": "a", "tags": ["b"]}, "tags: Extra inputs are not permitted", "tags", id="unknown field"),
    pytest.param({"text": "a", "source": ""}, "source: String should have at least 1", "source", id="no source"),
    pytest.param({"text": "a", "source": "s" * 201}, "at most 200", "source", id="long source"),
    pytest.param({"text": "a", "source": 1}, "valid string (got 1)", "source", id="number as source"),
    pytest.param("a", "JSON object (got 'a')", None, id="a string"),
    pytest.param(None, "JSON object (got None)", None, id="nothing"),
]


@pytest.mark.parametrize(("faulty", "says", "param"), FAULTY)
def test_one_faulty_text_keeps_all_of_them_out(api: InProcessApp, faulty: Any, says: str, param: str | None) -> None:
    alone = assert_problem(send(api, json.dumps(faulty).encode(), "application/json"), 422, "invalid_value")
    assert says in alone["detail"]
    assert alone["error"]["param"] == param

    for position in (0, 1, 2):
        items: list[Any] = [SOUND, {"text": "too"}]
        items.insert(position, faulty)
        in_list = assert_problem(api.post("/texts", json=items), 422, "invalid_value")
        assert f"item {position + 1}: " in in_list["detail"] and says in in_list["detail"]
        assert in_list["error"]["param"] == param
        lines = "\n".join(json.dumps(item) for item in items)
        in_lines = assert_problem(send(api, lines.encode(), NDJSON), 422, "invalid_value")
        assert f"line {position + 1}: " in in_lines["detail"] and says in in_lines["detail"]
    assert count(api) == 0


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        pytest.param(b'{"text": ', "application/json", "not valid JSON", id="half an object"),
        pytest.param(b"", "application/json", "not valid JSON", id="nothing"),
        pytest.param(b"Wind west.", "application/json", "not valid JSON", id="no JSON"),
        pytest.param(b"[" * 100_000, "application/json", "recursion limit", id="deep"),
        pytest.param(b'{"text": "\\ud800"}', "application/json", "not valid JSON", id="half of a surrogate pair"),
        pytest.param(b'{"text": "a\\udc00b"}', NDJSON, "line 1: ", id="its other half"),
        pytest.param(b"[]", "application/json", "contains no text", id="empty list"),
        pytest.param(b"\n \n", NDJSON, "contains no text", id="no lines"),
        pytest.param(b'{"text": "a"}\n\n{"text": "b"\n{"text": "c"}', NDJSON, "line 3: This is not", id="bad line"),
        pytest.param(b'{"text": "a"} {"text": "b"}', NDJSON, "line 1: ", id="two in a line"),
        pytest.param(b'{"text": "caf\xe9"}', "application/json", "byte 13 is 0xe9. Send UTF-8", id="Latin-1"),
        pytest.param(b"caf\xe9", "text/plain", "not UTF-8: byte 3", id="Latin-1, plain"),
        pytest.param(b"\xed\xa0\x80", "text/plain", "not UTF-8", id="a surrogate, plain"),
        pytest.param("a".encode("utf-16"), "text/plain", "not UTF-8", id="UTF-16"),
        pytest.param(b" \n", "text/plain", "empty", id="blank, plain"),
        pytest.param(b"", "text/plain", "empty", id="empty, plain"),
    ],
)
def test_bodies_that_cannot_be_read(api: InProcessApp, content: bytes, kind: str, says: str) -> None:
    document = assert_problem(send(api, content, kind), 422, "invalid_value")
    assert says in document["detail"]
    assert count(api) == 0


@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/html", "application/xml", None],
)
def test_other_content_types_are_refused(api: InProcessApp, kind: str | None) -> None:
    document = assert_problem(send(api, b'{"text": "a"}', kind), 415, "unsupported_media_type")
    assert (kind or "missing").partition(";")[0] in document["detail"] and "text/plain" in document["detail"]
    assert count(api) == 0


def test_the_source_in_the_query_is_checked_too(api: InProcessApp) -> None:
    for query in ("?source=", "?source=" + "s" * 201):
        document = assert_problem(send(api, b"a", "text/plain", query), 422, "invalid_value")
        assert document["error"]["param"] == "source"
    assert count(api) == 0


@pytest.mark.parametrize("character", ["a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{WAVING HAND SIGN}"])
def test_the_longest_text_is_counted_in_bytes(api: InProcessApp, character: str) -> None:
    longest = character * (LIMIT // len(character.encode()))
    assert api.post("/texts", json={"text": longest}).status_code == 201
    for content, kind in (
        (json.dumps([SOUND, {"text": longest + "!"}]), "application/json"),
        (longest + "!", "text/plain"),
    ):
        document = assert_problem(send(api, content.encode(), kind), 413, "too_large")
        assert "1,001 bytes" in document["detail"] and "max_text_bytes" in document["detail"]
        assert document["error"]["param"] == "text"
    assert count(api) == 1


@pytest.mark.parametrize("told", [True, False], ids=["with its length", "in chunks"])
@pytest.mark.parametrize("path", ["/texts", "/jobs", "/generate"])
def test_ten_megabytes_are_refused(api: InProcessApp, path: str, told: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 10**6

    content = b" " * 10**7 if told else chunks()
    kind = "text/plain" if path == "/texts" else "application/json"
    response = api.post(path, content=content, headers={"content-type": kind})
    document = assert_problem(response, 413, "too_large")
    assert "max_body_bytes" in document["detail"]
    assert count(api) == 0


def test_a_long_list_is_stored_in_its_order(api: InProcessApp) -> None:
    texts = [f"note {number}" for number in range(2000)]
    random.Random(1).shuffle(texts)
    response = api.post("/texts", json=[{"text": text} for text in texts])
    assert response.json()["created"] == len(texts)
    rows = {row.id: row.text for row in api.services.store.texts.page(after=None, limit=len(texts))}
    assert [rows[identity] for identity in response.json()["ids"]] == texts


@pytest.mark.parametrize("separator", [",", "\n"])
def test_too_long_a_list_is_refused_as_a_whole(api: InProcessApp, separator: str) -> None:
    joined = separator.join(['{"text":"a"}'] * (MAX_TEXTS + 1))
    content, kind = (f"[{joined}]", "application/json") if separator == "," else (joined, NDJSON)
    document = assert_problem(send(api, content.encode(), kind), 422, "invalid_value")
    assert f"at most {MAX_TEXTS:,}" in document["detail"]
    assert count(api) == 0


def test_a_list_of_nothing_but_faults_gets_a_short_answer(api: InProcessApp) -> None:
    response = api.post("/texts", json=[{}] * MAX_TEXTS)
    assert_problem(response, 422, "invalid_value")
    assert len(response.content) < 1000
    for faulty in (
        {"text": "a", "k" * 50_000: 1},
        {"text": ["v" * 50_000]},
        {"text": "a", **dict.fromkeys("bcdefghi")},
    ):
        response = api.post("/texts", json=faulty)
        assert_problem(response, 422, "invalid_value")
        assert len(response.content) < 2000


def page(api: InProcessApp, **query: Any) -> tuple[list[str], str | None]:
    """The texts of a page, and its `next`."""
    answer = api.get("/texts", params=query).json()
    assert answer["has_more"] is (answer["next"] is not None)
    return [item["text"] for item in answer["data"]], answer["next"]


def test_paging_newest_first(api: InProcessApp) -> None:
    assert api.get("/texts").json() == {"data": [], "has_more": False, "next": None}
    for number in range(7):
        api.add(f"note {number}")
        api.clock.advance(1)
    assert page(api) == ([f"note {number}" for number in range(6, -1, -1)], None)
    first, after = page(api, limit=3)
    second, then = page(api, limit=3, after=after)
    third, end = page(api, limit=3, after=then)
    assert (first, second, third) == (["note 6", "note 5", "note 4"], ["note 3", "note 2", "note 1"], ["note 0"])
    assert end is None
    assert page(api, limit=7)[1] is None


def test_paging_through_texts_of_one_moment_shows_each_once(api: InProcessApp) -> None:
    api.add(*(f"note {number}" for number in range(10)))
    seen: list[str] = []
    after: str | None = None
    for _ in range(4):
        shown, after = page(api, limit=3, **({"after": after} if after else {}))
        seen += shown
    assert after is None
    assert sorted(seen) == [f"note {number}" for number in range(10)]


@pytest.mark.parametrize("limit", ["0", "-1", "501", "many", "1.5", ""])
def test_a_limit_out_of_range(api: InProcessApp, limit: str) -> None:
    document = assert_problem(api.get("/texts", params={"limit": limit}), 422, "invalid_value")
    assert document["error"]["param"] == "limit" and repr(limit) in document["detail"]


@pytest.mark.parametrize(
    "method, path", [("GET", "/texts?after=text-0"), ("GET", "/texts/text-0"), ("DELETE", "/texts/text-0")]
)
def test_an_unknown_id(api: InProcessApp, method: str, path: str) -> None:
    api.add("a")
    document = assert_problem(api.request(method, path), 404, "not_found")
    assert "'text-0'" in document["detail"] and "GET /texts" in document["detail"]
    assert count(api) == 1


def files_hold(folder: Path, marker: bytes) -> bool:
    return any(marker in file.read_bytes() for file in folder.iterdir() if file.is_file())


@pytest.mark.parametrize("repeats", [1, 80], ids=["a short text", "a text of several database pages"])
def test_a_deleted_text_is_gone_from_the_disk(tmp_path: Path, repeats: int) -> None:
    folder = tmp_path / "data"
    marker = b"xyzzy-plugh"
    with in_process_app(folder) as api:
        others = api.add("keep me", "and me", source="marked")
        [identity] = api.add(f"{marker.decode()} and so on, for a while. " * repeats * 10)
        assert files_hold(folder, marker)
        response = api.delete(f"/texts/{identity}")
        assert response.json()["deletion"]["erased"] is True
        assert not files_hold(folder, marker)
        assert_problem(api.get(f"/texts/{identity}"), 404, "not_found")
        assert stored(api, others) == [("keep me", "marked"), ("and me", "marked")]
    assert not files_hold(folder, marker)


def test_what_is_answered_201_is_in_the_file(api: InProcessApp) -> None:
    """Seen by another connection: nothing of it waits in this process."""
    [identity] = api.add("here to stay")
    with closing(sqlite3.connect(api.services.folder.database)) as other:
        assert other.execute("SELECT text FROM text WHERE id = ?", [identity]).fetchall() == [("here to stay",)]


def test_the_beginning_of_an_id_is_enough_where_no_other_begins_like_it(api: InProcessApp) -> None:
    ids = api.post("/texts", json=[{"text": f"Note {number}."} for number in range(40)]).json()["ids"]
    chosen = ids[0]
    short = next(chosen[:size] for size in range(5, 29) if sum(one.startswith(chosen[:size]) for one in ids) == 1)
    assert api.get(f"/texts/{short}").json()["id"] == chosen
    several = assert_problem(api.get(f"/texts/{short[:-1]}"), 404, "not_found")
    assert "Give more characters" in several["detail"]
    assert_problem(api.get(f"/texts/{chosen[5:]}"), 404, "not_found")
    assert api.delete(f"/texts/{short}").json()["id"] == chosen
    assert_problem(api.get(f"/texts/{short}"), 404, "not_found")
