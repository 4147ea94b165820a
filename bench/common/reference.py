"""The tables of the reference pages: every route and every setting, as the code says them (see bench.readme)."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pocketllm.api.app import create_app
from pocketllm.daemon.services import build_services
from pocketllm.daemon.settings import GateSettings, Settings, TrainingSettings

SECTIONS: dict[str, type[BaseModel]] = {"daemon": Settings, "training": TrainingSettings, "gate": GateSettings}
_BOUNDS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}


def settings_table(section: str) -> str:
    """The settings of a section: `daemon`, `training` or `gate`. Raises LookupError for another one."""
    fields = SECTIONS[section].model_fields
    rows = [
        (f"`{name}`", _default(field), " ".join([field.description or "", _bounds(field)]).strip())
        for name, field in fields.items()
        if name not in SECTIONS
    ]
    return markdown_table(("setting", "default", "meaning"), rows)


def routes_table(tag: str) -> str:
    """The routes with a tag, without deprecated ones: what each takes, and the first sentence of what it does.

    OpenAPI has the others. Raises LookupError where there is none.
    """
    document = _document()
    rows = [
        (f"`{method.upper()} {path}`", _inputs(about, document), _first_sentence(about["description"]))
        for path, methods in document["paths"].items()
        for method, about in methods.items()
        if tag in about["tags"] and not about.get("deprecated")
    ]
    if not rows:
        raise LookupError(f"no route has the tag {tag}")
    return markdown_table(("route", "takes", "does"), rows)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.) ", " ".join(text.split()))[0]


@cache
def _document() -> dict[str, Any]:
    """The OpenAPI document of a daemon with default settings; built once, for all tables."""
    with tempfile.TemporaryDirectory() as folder:
        services = build_services(Settings(data_dir=Path(folder)))
        try:
            return create_app(services, token="none").openapi()
        finally:
            services.store.close()


def _inputs(about: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """The names of a route's query parameters and of its JSON body's fields."""
    names = [f"`?{parameter['name']}`" for parameter in about.get("parameters", ()) if parameter["in"] == "query"]
    content = about.get("requestBody", {}).get("content", {})
    for media_type in ("application/json", "multipart/form-data"):
        names += [f"`{name}`" for name in _fields(content.get(media_type, {}).get("schema", {}), document)]
    return ", ".join(dict.fromkeys(names))


def _fields(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    if reference := schema.get("$ref"):
        yield from _fields(document["components"]["schemas"][reference.rpartition("/")[2]], document)
    for alternative in schema.get("anyOf", ()):
        yield from _fields(alternative, document)
    yield from schema.get("properties", ())


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default_factory is not None:
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, Path):
        value = str(value)
    return "" if value is None else f"`{json.dumps(value)}`"


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{words} {getattr(bound, type(bound).__name__.lower())}"
        for bound in field.metadata
        if (words := _BOUNDS.get(type(bound)))
    ]
    bounds = re.sub("^at least (.*), at most ", r"\1 to ", ", ".join(found))
    return f"({bounds})" if found else ""


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
