"""/texts: add, list and delete texts."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from pocketllm.api.dependencies import ServicesDep
from pocketllm.api.native.examples import DEFAULT_SOURCE, KINDS, MAX_TEXTS, Limits, check, parse, schema_of
from pocketllm.api.native.ingest import Ingest
from pocketllm.api.native.schemas.jobs import AddedOut, DeletedOut, Page, TextOut

router = APIRouter(tags=["texts"])

_SCHEMAS = [schema_of(kind) for kind in KINDS]
_EXAMPLES: dict[str, Any] = {
    "plain": {"text": "Wind west, glass rising.", "source": "notes"},
    "completion": {"prompt": "Who has the watch tonight?", "completion": "Anna until four.", "source": "chat"},
    "labelled": {"text": "Two mugs of tea and the shed to myself.", "label": "positive", "source": "diary"},
    "chat": {
        "messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Always."}],
        "source": "chat",
    },
}
_EXAMPLES["several"] = list(_EXAMPLES.values())
_BODY_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        *_SCHEMAS,
                        {"type": "array", "items": {"anyOf": _SCHEMAS}, "minItems": 1, "maxItems": MAX_TEXTS},
                    ]
                },
                "examples": {name: {"value": value} for name, value in _EXAMPLES.items()},
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
            "text/plain": {"schema": {"type": "string"}},
        },
    }
}


@router.post("/texts", status_code=HTTPStatus.CREATED, openapi_extra=_BODY_DOC)
async def add_texts(
    request: Request,
    services: ServicesDep,
    source: Annotated[str, Query(min_length=1, max_length=200)] = DEFAULT_SOURCE,
) -> AddedOut:
    """Store one text (JSON object or text/plain), or many (JSON list or NDJSON): all of them or none.

    A text is plain (`text`), a `prompt` with its `completion`, a `text` with its `label`, or a chat (`messages`, of
    which the assistant's are learned). Answered when they are on disk. The same text from the same source twice is one
    text. `source` in the query is for text/plain.
    """
    limits = Limits.of(services.settings)
    ingest: Ingest = request.app.state.ingest
    body = await request.body()  # before the slot, so that a slow sender does not block others
    async with ingest.slot():
        examples = parse(body, request.headers.get("content-type", ""), source)
        for place, example in examples:
            check(example, place, limits)
        added = await ingest.add([example.new() for _, example in examples])
    return AddedOut(ids=list(added.ids), created=added.created, duplicates=added.duplicates)


@router.get("/texts")
def list_texts(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=500)] = 50, after: str | None = None
) -> Page[TextOut]:
    """A page of texts, newest first; `after` is the last id of the page before."""
    rows = services.store.texts.page(after=after, limit=limit + 1)
    return Page.of([TextOut.of(row) for row in rows], limit)


@router.get("/texts/{text_id}")
def get_text(text_id: str, services: ServicesDep) -> TextOut:
    """One text."""
    return TextOut.of(services.store.texts.get(text_id))


@router.delete("/texts/{text_id}")
def delete_text(text_id: str, services: ServicesDep) -> DeletedOut:
    """Delete a text; its bytes are overwritten on disk. What was learned from it stays in the adapters made so far."""
    services.store.texts.delete(text_id)
    return DeletedOut(id=text_id)
