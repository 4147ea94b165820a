"""/texts: the owner's words come in, are listed, and go."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from pocketllm.api.context import Context
from pocketllm.api.problems import Problem, explain
from pocketllm.api.schemas import AddedOut, DeletedOut, Page, TextOut
from pocketllm.storage.texts import NewText

router = APIRouter(tags=["texts"])

DEFAULT_SOURCE = "unknown"
#: The most texts in a request: it bounds the daemon's memory, and how long a worker waits for the database.
MAX_TEXTS = 30_000


class TextIn(BaseModel):
    """One text."""

    model_config = ConfigDict(extra="forbid")

    text: str
    source: str = Field(DEFAULT_SOURCE, min_length=1, max_length=200, description="Which app or place it is from.")


_BODY_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        TextIn.model_json_schema(),
                        {"type": "array", "items": TextIn.model_json_schema(), "minItems": 1, "maxItems": MAX_TEXTS},
                    ]
                },
                "example": {"text": "Wind west, glass rising.", "source": "notes"},
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
            "text/plain": {"schema": {"type": "string"}},
        },
    }
}


@router.post("/texts", status_code=HTTPStatus.CREATED, openapi_extra=_BODY_DOC)
async def add_texts(
    request: Request, services: Context, source: Annotated[str, Query(min_length=1, max_length=200)] = DEFAULT_SOURCE
) -> AddedOut:
    """Store one text (JSON object or text/plain), or many (JSON list or NDJSON): all of them or none.

    Answered when they are on disk. The same text from the same source twice is one text. `source` in the query
    is for text/plain.
    """
    texts = parse(await request.body(), request.headers.get("content-type", ""), source)
    for place, text in texts:
        check(text, place, services.settings.max_text_bytes)
    new = [NewText(text=text.text, source=text.source) for _, text in texts]
    added = await run_in_threadpool(services.store.texts.add, new, now=services.now())
    return AddedOut(ids=list(added.ids), created=added.created, duplicates=added.duplicates)


@router.get("/texts")
def list_texts(
    services: Context, limit: Annotated[int, Query(ge=1, le=500)] = 50, after: str | None = None
) -> Page[TextOut]:
    """A page of texts, newest first; `after` is the last id of the page before."""
    rows = services.store.texts.page(after=after, limit=limit + 1)
    return Page.of([TextOut.of(row) for row in rows], limit)


@router.get("/texts/{text_id}")
def get_text(text_id: str, services: Context) -> TextOut:
    """One text."""
    return TextOut.of(services.store.texts.get(text_id))


@router.delete("/texts/{text_id}")
def delete_text(text_id: str, services: Context) -> DeletedOut:
    """Delete a text; its bytes are overwritten on disk. What was learned from it stays in the adapters made so far."""
    services.store.texts.delete(text_id)
    return DeletedOut(id=text_id)


def parse(body: bytes, content_type: str, source: str) -> list[tuple[str, TextIn]]:
    """The texts in a request's body, each with the words that say where it stands. Raises Problem."""
    kind = content_type.partition(";")[0].strip().lower()
    text = _decoded(body)
    if kind == "text/plain":
        return [("", TextIn(text=text, source=source))]
    if kind == "application/json":
        document = _parsed(text, "")
        if not isinstance(document, list):
            return [("", _validated(document, ""))]
        placed = [(f"item {number}: ", item) for number, item in enumerate(document, 1)]
        return [(place, _validated(item, place)) for place, item in _countable(placed)]
    if kind in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        # Not splitlines(): a JSON text may hold other line separators as they are.
        lines = [(f"line {number}: ", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(place, _validated(_parsed(line, place), place)) for place, line in _countable(lines)]
    raise Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"Content-Type is {kind or 'missing'}; send application/json, application/x-ndjson or text/plain.",
    )


def check(text: TextIn, place: str, limit: int) -> None:
    """Refuse a text that is empty or longer than `limit` bytes. Raises Problem naming its place."""
    if not text.text.strip():
        detail = f"{place}The text is empty. Send some words."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param="text")
    size = len(text.text.encode())
    if size > limit:
        detail = (
            f"{place}The text is {size:,} bytes; the longest allowed is {limit:,} (setting max_text_bytes). Split it."
        )
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, param="text")


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        detail = f"The body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Send UTF-8."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail) from error


def _parsed(text: str, place: str) -> Any:
    """The JSON document. It can hold no half of a surrogate pair: the parser refuses that, as UTF-8 would."""
    try:
        return from_json(text)
    except ValueError as error:
        detail = f"{place}This is not valid JSON: {error}."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail) from error


def _validated(document: Any, place: str) -> TextIn:
    try:
        return TextIn.model_validate(document)
    except ValidationError as error:
        detail, param = explain(error.errors(include_url=False))
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, place + detail, param=param) from error


def _countable(items: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The items, unless there are none or too many of them."""
    if not items:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "There is no text in the body. Send at least one.")
    if len(items) > MAX_TEXTS:
        detail = f"These are {len(items):,} texts; at most {MAX_TEXTS:,} go into one request. Send them in parts."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    return items
