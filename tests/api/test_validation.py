"""What the document at /openapi.json forbids is refused on every route, by the name of the field.

Each route's sound body is broken in one place after the other. Examples of POST /texts and files are checked by a
parser of our own: native/test_api_examples.py, openai/test_api_tuning.py.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.in_process_app import Document, InProcessApp, assert_problem
from tests.support.snapshots import assert_snapshot

JSON = "application/json"
MESSAGES = [{"role": "user", "content": "a"}]
TRAINED: Document = {"hyperparameters": {}}
FORMAT = {"type": "json_schema", "json_schema": {"schema": {}}}
#: Sound bodies of the routes whose example in the document shows less, or that have none.
SOUND: dict[str, Document] = {
    "/adapters/rollback": {},
    "/generate": {"messages": MESSAGES},
    "/v1/chat/completions": {
        **{"model": "m", "messages": MESSAGES, "stream_options": {}, "response_format": FORMAT},
        **{"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    },
    "/v1/completions": {"model": "m", "prompt": "a"},
    "/v1/fine_tuning/jobs": {"model": "m", "training_file": "f", "method": {"supervised": TRAINED}, **TRAINED},
}
#: By the type that a schema names: values of others. Of numbers, those that look like one and are none, too.
OTHER_TYPES: dict[str, list[Any]] = {
    "array": ["x", {}],
    "boolean": [1, "perhaps"],
    "integer": ["5", 1.5, True, []],
    "number": ["5", True, [], float("nan"), float("inf")],
    "object": ["x", []],
    "string": [5, []],
}
#: The same in a query, where everything is text.
OTHER_TEXTS: dict[str, list[Any]] = {"boolean": ["perhaps"], "integer": ["", "x", "1.5"], "number": ["", "x"]}
#: By the keyword of a schema: a value of the right type that it forbids.
BEYOND: dict[str, Callable[[Any], Any]] = {
    "minimum": lambda least: least - 1,
    "exclusiveMinimum": lambda least: least,
    "maximum": lambda most: most + 1,
    "minLength": lambda _: "",
    "maxLength": lambda most: "x" * (most + 1),
    "minItems": lambda _: [],
    "enum": lambda _: "nonsense",
    "const": lambda _: "nonsense",
    "format": lambda _: "2030-01-01T00:00:00",  # a time without its zone
}
LIMITS = (*BEYOND, "maxItems", "pattern")
#: Tried where a schema has a pattern.
ODD_WORDS = ["", " ", "a:b", "../x", "x" * 65]


@pytest.fixture(scope="module")
def schemas(shared: InProcessApp) -> Document:
    found: Document = shared.app.openapi()["components"]["schemas"]
    return found


def operations(api: InProcessApp) -> Iterator[tuple[str, str, Document]]:
    for path, methods in api.app.openapi()["paths"].items():
        for method, about in methods.items():
            yield method.upper(), path, about


def with_body(api: InProcessApp) -> Iterator[tuple[str, str, Document]]:
    """The routes that take JSON, each with the kinds of body that it takes."""
    for method, path, about in operations(api):
        if JSON in (content := about.get("requestBody", {}).get("content", {})):
            yield method, path, content


def kinds(schema: Document, schemas: Document) -> Iterator[Document]:
    """What a value may be."""
    if "$ref" in schema:
        yield from kinds(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from kinds(one, schemas)
    else:
        yield schema


def forbidden(kind: Document, types: dict[str, list[Any]], item: Any = "x") -> list[Any]:
    """Values that a schema forbids: of other types, and beyond its limits. item: one of a list."""
    found = types.get(kind.get("type", ""), []) + [make(kind[word]) for word, make in BEYOND.items() if word in kind]
    if "maxItems" in kind:
        found = [*found, [item] * (kind["maxItems"] + 1)]
    return found + [value for value in ODD_WORDS if not re.search(kind.get("pattern", ""), value)]


def broken(schema: Document, schemas: Document, sound: Any) -> Iterator[tuple[str, Any]]:
    """What a schema forbids: a place, and the sound value with something in this place that cannot be there."""
    found = [*kinds(schema, schemas)]
    if not any(kind.get("type") == "null" for kind in found):
        yield "", None
    kind, *others = (kind for kind in found if kind.get("type") != "null")
    if others:
        yield "", {}  # no field may be an object or something else
        return
    item = sound[0] if isinstance(sound, list) and sound else "x"
    for value in forbidden(kind, OTHER_TYPES, item):
        yield "", value
    if isinstance(sound, dict):
        for name in kind.get("required", ()):
            yield name, {key: value for key, value in sound.items() if key != name}
        if kind.get("additionalProperties") is False:
            yield "surplus", sound | {"surplus": 1}
        for name, field in kind.get("properties", {}).items():
            for place, value in broken(field, schemas, sound.get(name)):
                yield f"{name}.{place}".rstrip("."), sound | {name: value}
    elif isinstance(item, dict):
        for place, value in broken(kind["items"], schemas, item):
            yield f"0.{place}".rstrip("."), [value, *sound[1:]]


def sound_body(path: str, content: Document, schemas: Document) -> Document:
    """SOUND's, or the document's own example."""
    [kind] = (kind for kind in kinds(content[JSON]["schema"], schemas) if kind.get("type") != "null")
    body: Document = SOUND[path] if path in SOUND else kind["example"]
    return body


def assert_nothing_was_done(api: InProcessApp) -> None:
    for path in ("/texts", "/jobs", "/v1/files", "/tokens"):
        assert api.get(path).json()["data"] == [], path
    assert api.get("/status").json()["training"]["snoozed_until"] is None


def test_a_field_that_is_wrong_is_named(shared: InProcessApp, schemas: Document, subtests: pytest.Subtests) -> None:
    routes = [route for route in with_body(shared) if route[1] != "/texts"]
    assert len(routes) >= 12
    for method, path, content in routes:
        with subtests.test(path):
            tried = [*broken(content[JSON]["schema"], schemas, sound_body(path, content, schemas))]
            assert len(tried) >= 5
            for place, body in tried:
                sent = json.dumps(body)  # NaN and all
                response = shared.request(method, path, content=sent, headers={"content-type": JSON})
                assert response.status_code == 422, (place, sent[:200], response.text)
                document = assert_problem(response, 422, "invalid_value")
                named = document["error"]["param"] or ""
                assert named == place or (place and named.startswith(f"{place}.")), (place, sent[:200], named)
                assert (place or "body") in document["detail"]
                assert len(response.content) < 4000, "the input is not quoted in bulk"
    assert_nothing_was_done(shared)


def test_the_sound_bodies_are_sound(bare: InProcessApp, schemas: Document) -> None:
    for method, path, content in with_body(bare):
        if path != "/texts":
            response = bare.request(method, path, json=sound_body(path, content, schemas))
            assert response.status_code != 422, (path, response.text)


def test_a_parameter_that_is_wrong_is_named(api: InProcessApp, schemas: Document, subtests: pytest.Subtests) -> None:
    api.learn("adapter-1")
    ids, tried = {"job_id": api.get("/jobs").json()["data"][0]["id"]}, 0
    for method, path, about in operations(api):
        for parameter in about.get("parameters", ()):
            if parameter["in"] != "query":
                continue
            name = parameter["name"]
            [kind] = (kind for kind in kinds(parameter["schema"], schemas) if kind.get("type") != "null")
            with subtests.test(f"{method} {path}", name=name):
                for value in forbidden(kind, OTHER_TEXTS):
                    tried += 1
                    found = re.sub(r"{(\w+)}", lambda place: ids.get(place[1], "adapter-1"), path)
                    response = api.request(method, found, params={name: value})
                    document = assert_problem(response, 422, "invalid_value")
                    assert document["error"]["param"] == name, value
                    assert name in document["detail"] and len(response.content) < 4000
    assert tried >= 40
    assert len(api.get("/texts").json()["data"]) == len(api.get("/adapters").json()["data"]) == 1


def test_a_body_of_another_kind_is_refused(shared: InProcessApp, subtests: pytest.Subtests) -> None:
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


def test_a_body_that_cannot_be_read_is_refused(shared: InProcessApp, subtests: pytest.Subtests) -> None:
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


def test_an_unknown_id_is_named_with_what_lists_them(api: InProcessApp, subtests: pytest.Subtests) -> None:
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


def test_the_limits_are_those_that_were_chosen(shared: InProcessApp, schemas: Document) -> None:
    """A limit that is dropped takes the tests above along, but not this one."""
    places = [
        (f"{name}.{field}", about)
        for name, schema in sorted(schemas.items())
        if not name.endswith("Out")
        for field, about in schema.get("properties", {}).items()
    ]
    for method, path, about in operations(shared):
        places += [(f"{method} {path} {one['name']}", one["schema"]) for one in about.get("parameters", ())]
    limits = [
        f"{place} {word} {kind[word]}"
        for place, about in places
        for kind in kinds(about, schemas)
        for word in LIMITS
        if word in kind
    ]
    assert_snapshot("\n".join(limits), Path(__file__).parent / "snapshots/limits.txt")
