"""/texts: the owner's words come in, are listed, and go."""

from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from pocketllm.api.context import Context
from pocketllm.api.ingest import Ingest
from pocketllm.api.problems import Problem, explain
from pocketllm.api.schemas import AddedOut, DeletedOut, Page, TextOut
from pocketllm.storage.texts import NewText

router = APIRouter(tags=["texts"])

DEFAULT_SOURCE = "unknown"
#: The most texts in a request: it bounds the daemon's memory, and how long a worker waits for the database.
MAX_TEXTS = 30_000


#: The most of a refused label that is said back, and the most labels that are said to be known.
LABEL_CHARACTERS = 60
LABELS_SHOWN = 10


class _Example(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str = Field(DEFAULT_SOURCE, min_length=1, max_length=200, description="Which app or place it is from.")


class PlainIn(_Example):
    """A text to learn all of."""

    text: str

    def new(self) -> NewText:
        """As storage takes it."""
        return NewText(text=self.text, source=self.source)


class CompletionIn(_Example):
    """A prompt, and what is to follow it: only the completion is learned."""

    prompt: str
    completion: str

    def new(self) -> NewText:
        """As storage takes it."""
        return NewText(text=self.prompt, completion=self.completion, source=self.source)


class LabelledIn(_Example):
    """A text, and which of the labels in the settings it has."""

    text: str
    label: str

    def new(self) -> NewText:
        """As storage takes it."""
        return NewText(text=self.text, label=self.label, source=self.source)


Example = PlainIn | CompletionIn | LabelledIn


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the settings say of examples."""

    max_bytes: int
    labels: Collection[str]


_SCHEMAS = [kind.model_json_schema() for kind in (PlainIn, CompletionIn, LabelledIn)]
_EXAMPLES: dict[str, Any] = {
    "plain": {"text": "Wind west, glass rising.", "source": "notes"},
    "completion": {"prompt": "Who has the watch tonight?", "completion": "Anna until four.", "source": "chat"},
    "labelled": {"text": "Two mugs of tea and the shed to myself.", "label": "positive", "source": "diary"},
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
    request: Request, services: Context, source: Annotated[str, Query(min_length=1, max_length=200)] = DEFAULT_SOURCE
) -> AddedOut:
    """Store one text (JSON object or text/plain), or many (JSON list or NDJSON): all of them or none.

    A text is plain (`text`), a `prompt` with its `completion`, or a `text` with its `label`. Answered when they are
    on disk. The same text from the same source twice is one text. `source` in the query is for text/plain.
    """
    settings = services.settings
    limits = Limits(max_bytes=settings.max_text_bytes, labels=settings.training.label_words)
    ingest: Ingest = request.app.state.ingest
    body = await request.body()  # a slow sender takes nobody's turn
    async with ingest.turns:
        examples = parse(body, request.headers.get("content-type", ""), source)
        for place, example in examples:
            check(example, place, limits)
        added = await ingest.add([example.new() for _, example in examples])
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


def parse(body: bytes, content_type: str, source: str) -> list[tuple[str, Example]]:
    """The examples in a request's body, each with the words that say where it stands. Raises Problem."""
    kind = content_type.partition(";")[0].strip().lower()
    text = _decoded(body)
    if kind == "text/plain":
        return [("", PlainIn(text=text, source=source))]
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


def check(example: Example, place: str, limits: Limits) -> None:
    """Refuse what is empty, too long, or has a label that is not known. Raises Problem naming place and field."""
    if isinstance(example, CompletionIn):
        words = {"prompt": example.prompt, "completion": example.completion}
    else:
        words = {"text": example.text}
    for name, text in words.items():
        if not text.strip():
            detail = f"{place}The {name} is empty. Send some words."
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param=name)
    size = sum(len(text.encode()) for text in words.values())
    if size > limits.max_bytes:
        name = " with its ".join(words)
        limit = f"the longest allowed is {limits.max_bytes:,} (setting max_text_bytes)"
        detail = f"{place}The {name} is {size:,} bytes; {limit}. Split it."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, param=next(iter(words)))
    if isinstance(example, LabelledIn) and example.label not in limits.labels:
        shown = ", ".join(map(repr, list(limits.labels)[:LABELS_SHOWN]))
        given = repr(example.label[:LABEL_CHARACTERS])
        detail = f"{place}label: {given} is none of the labels in the setting training.label_words ({shown})."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param="label")


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


def _validated(document: Any, place: str) -> Example:
    try:
        return _kind(document, place).model_validate(document)
    except ValidationError as error:
        detail, param = explain(error.errors(include_url=False))
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, place + detail, param=param) from error


def _kind(document: Any, place: str) -> type[Example]:
    """Which kind a document's fields are of. Raises Problem when they are of two."""
    named = document if isinstance(document, dict) else {}
    of_text = [name for name in ("text", "label") if name in named]
    of_prompt = [name for name in ("prompt", "completion") if name in named]
    if of_text and of_prompt:
        detail = (
            f"{place}{of_prompt[-1]}: it does not go together with {of_text[-1]}. Send a text alone, a text with its "
            "label, or a prompt with its completion."
        )
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param=of_prompt[-1])
    if of_prompt:
        return CompletionIn
    return LabelledIn if "label" in named else PlainIn


def _countable(items: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The items, unless there are none or too many of them."""
    if not items:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "There is no text in the body. Send at least one.")
    if len(items) > MAX_TEXTS:
        detail = f"These are {len(items):,} texts; at most {MAX_TEXTS:,} go into one request. Send them in parts."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    return items
