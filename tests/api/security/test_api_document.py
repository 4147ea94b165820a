"""The OpenAPI document: every route says how it fails, and what it shows as an example works."""

from collections.abc import Iterator
from typing import Any

from tests.support.daemon.in_process_app import InProcessApp


def operations(api: InProcessApp) -> list[tuple[str, str, dict[str, Any]]]:
    paths: dict[str, dict[str, dict[str, Any]]] = api.get("/openapi.json").json()["paths"]
    return [(method.upper(), path, about) for path, methods in paths.items() for method, about in methods.items()]


def test_every_route_says_what_it_does_and_how_it_fails(api: InProcessApp) -> None:
    found = operations(api)
    assert len(found) >= 40
    for method, path, about in found:
        where = f"{method} {path}"
        assert about["description"].strip() and about["tags"], where
        problem = about["responses"]["default"]["content"]["application/problem+json"]["schema"]
        assert set(problem["required"]) == {"type", "title", "status", "detail", "error"}, where
        assert "422" not in about["responses"], f"{where}: not in FastAPI's own shape"
        assert any(status.startswith("2") for status in about["responses"]), where


def test_an_error_has_the_shape_that_is_documented(api: InProcessApp) -> None:
    document = api.get("/texts/none").json()
    [schema] = [about for method, path, about in operations(api) if (method, path) == ("GET", "/texts/{text_id}")]
    problem = schema["responses"]["default"]["content"]["application/problem+json"]["schema"]
    assert set(document) == set(problem["properties"])
    assert set(document["error"]) == set(problem["properties"]["error"]["properties"])


def test_the_examples_work(api: InProcessApp) -> None:
    api.add("word " * 50)
    tried = 0
    for method, path, about in operations(api):
        content = about.get("requestBody", {}).get("content", {}).get("application/json", {})
        schemas = [content.get("schema", {})]
        reference = schemas[0].get("$ref", "").rpartition("/")[2]
        if reference:
            schemas.append(api.get("/openapi.json").json()["components"]["schemas"][reference])
        for example in [schema["example"] for schema in schemas if "example" in schema]:
            if path in ("/generate", "/suggest", "/classify"):
                continue  # a real daemon's tests ask these
            tried += 1
            response = api.request(method, path.format(name="x"), json=example)
            assert response.status_code < 400, (path, response.text)
    assert tried >= 3


def references(part: Any) -> Iterator[str]:
    """Every reference in a document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_every_reference_leads_somewhere(api: InProcessApp) -> None:
    document = api.app.openapi()
    found = set(references(document))
    assert found
    for reference in found:
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in place, reference
            place = place[name]
