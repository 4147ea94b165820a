"""/texts: the owner's words come in, are listed, and go."""

from http import HTTPStatus
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from pocketllm.api.context import Context
from pocketllm.api.problems import Problem, explain
from pocketllm.api.schemas import AddedOut, DeletedOut, Page, TextOut
from pocketllm.storage.texts import NewText

T = TypeVar("T")

router = APIRouter(tags=["texts"])

DEFAULT_SOURCE = "unknown"


class TextIn(BaseModel):
    """One text."""

    model_config = ConfigDict(extra="forbid")

    text: str
    source: str = Field(DEFAULT_SOURCE, min_length=1, max_length=200, description="Which app or place it is from.")


_ONE = TypeAdapter(TextIn)
_MANY = TypeAdapter(list[TextIn])
_BODY_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [_ONE.json_schema(), _MANY.json_schema()]},
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
    limit = services.settings.max_text_bytes
    for number, text in enumerate(texts):
        check(text, number, limit)
    new = [NewText(text=text.text, source=text.source) for text in texts]
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


def parse(body: bytes, content_type: str, source: str) -> list[TextIn]:
    """The texts in a request's body. Raises Problem, or ValidationError turned into one."""
    kind = content_type.partition(";")[0].strip().lower()
    text = _decoded(body)
    if kind == "text/plain":
        return [TextIn(text=text, source=source)]
    if kind in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        return _not_none([_validated(_ONE, line, f"line {number}: ") for number, line in lines])
    if kind == "application/json":
        if text.lstrip().startswith("["):
            return _not_none(_validated(_MANY, text, ""))
        return [_validated(_ONE, text, "")]
    raise Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"Content-Type is {kind or 'missing'!r}; send application/json, application/x-ndjson or text/plain.",
    )


def check(text: TextIn, number: int, limit: int) -> None:
    """Refuse a text that is empty, too long, or cannot be stored as UTF-8. Raises Problem naming its place."""
    field = f"text {number}"
    if not text.text.strip():
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{field} is empty. Send some words.", param="text")
    try:
        size = len(text.text.encode())
        text.source.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        detail = f"{field} has half of a surrogate pair at character {error.start}; it is not a Unicode text."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param="text") from error
    if size > limit:
        detail = f"{field} is {size:,} bytes; the longest allowed is {limit:,} (setting max_text_bytes). Split it."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, param="text")


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        detail = f"The body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Send UTF-8."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail) from error


def _validated(adapter: TypeAdapter[T], text: str, place: str) -> T:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        detail, param = explain(error.errors(include_url=False))
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, place + detail, param=param) from error


def _not_none(texts: list[TextIn]) -> list[TextIn]:
    if not texts:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "There is no text in the body. Send at least one.")
    return texts
