"""The examples of docs/api.md: each field of a request and of its answer is one of OpenAPI's, and has its type."""

import json
import re
from typing import Any

import pytest
from jsonschema_rs import validate

from bench.common.harness import ROOT
from tests.support.daemon.in_process_app import Document, InProcessApp

EXAMPLE = re.compile(r"```http\n([A-Z]+) (/[^?\n]*).*?\n(?:\n(.*?))?```\n\n```json\n(.*?)```", re.DOTALL)


def strict(part: Any) -> Any:
    """The same schema, which takes some of its fields and no others."""
    if isinstance(part, list):
        return [strict(one) for one in part]
    if not isinstance(part, dict):
        return part
    closed = {"additionalProperties": False} if isinstance(part.get("properties"), dict) else {}
    return {name: strict(one) for name, one in part.items() if name != "required" or not isinstance(one, list)} | closed


def test_an_example_is_one_of_the_schemas(api: InProcessApp, subtests: pytest.Subtests) -> None:
    document: Document = strict(api.get("/openapi.json").json())
    examples = EXAMPLE.findall((ROOT / "docs/api.md").read_text())
    assert len(examples) >= 10
    for method, path, body, answer in examples:
        with subtests.test(f"{method} {path}"):
            routes = [one for one in document["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", one), path)]
            route = document["paths"][min(routes, key=lambda one: one.count("{"))][method.lower()]
            answers = [one for status, one in route["responses"].items() if status.startswith("2") and "content" in one]
            for said, contents in ((answer, answers), (body, [route.get("requestBody")])):
                schemas = [one["content"]["application/json"]["schema"] for one in contents if one]
                if said:
                    validate({"anyOf": schemas, "components": document["components"]}, json.loads(said))
