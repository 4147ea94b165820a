"""Parses and checks examples: texts of four kinds, one or many."""

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from pocketllm.api.bodies import Body, check_size, parsed
from pocketllm.api.errors import Problem, explain
from pocketllm.storage.repositories.texts import NewText, chat_text

DEFAULT_SOURCE = "unknown"
#: The most texts in a request: bounds the daemon's memory, and how long a worker waits for the database.
MAX_TEXTS = 30_000
MAX_LABEL_CHARACTERS = 100
_COMPONENTS = "#/components/schemas/"


#: `check` says it better than a pattern's error.
Words = Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]


#: A word or a few.
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS, json_schema_extra={"pattern": r"\S"})]


class _Example(Body):
    source: str = Field(DEFAULT_SOURCE, min_length=1, max_length=200, description="The app or place it comes from.")

    def words(self) -> dict[str, str]:
        """The text in it, by its fields."""
        return self.model_dump(exclude={"source"})

    def new(self, *, held_out: bool | None = None) -> NewText:
        """As a NewText. held_out: see there."""
        return NewText(**self._parts(), source=self.source, held_out=held_out)

    def _parts(self) -> dict[str, Any]:
        """Its parts, by the names of NewText's fields."""
        return self.words()


class PlainIn(_Example):
    """A plain text. All of it is trained on."""

    text: Words


class CompletionIn(_Example):
    """A prompt and its completion. Only the completion is trained on."""

    prompt: Words
    completion: Words

    def _parts(self) -> dict[str, Any]:
        return {"text": self.prompt, "completion": self.completion}


class LabelledIn(_Example):
    """A text with a label."""

    text: Words
    label: Label


class MessageIn(Body):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str
    weight: int | None = Field(None, ge=0, le=1, description="0: do not train on this assistant message.")


#: A message with words to learn.
_LEARNED: dict[str, Any] = {
    "required": ["role", "content"],
    "properties": {"role": {"const": "assistant"}, "content": {"pattern": r"\S"}, "weight": {"enum": [1, None]}},
}


class ChatIn(_Example):
    """A chat. Only the assistant's messages are trained on."""

    messages: list[MessageIn] = Field(
        fail_fast=True, min_length=1, max_length=1000, json_schema_extra={"contains": _LEARNED}
    )

    @field_validator("messages")
    @classmethod
    def _something_to_learn(cls, messages: list[MessageIn]) -> list[MessageIn]:
        if not any(one.role == "assistant" and one.content.strip() and one.weight != 0 for one in messages):
            raise ValueError("no assistant message has words to train on")
        return messages

    def words(self) -> dict[str, str]:
        """See _Example."""
        return {"messages": "".join(message.content for message in self.messages)}

    def _parts(self) -> dict[str, Any]:
        messages = [message.model_dump(exclude_none=True) for message in self.messages]
        return {"text": chat_text(messages), "messages": messages}


KINDS = (PlainIn, CompletionIn, LabelledIn, ChatIn)
Example = PlainIn | CompletionIn | LabelledIn | ChatIn


def schemas() -> dict[str, Any]:
    """The JSON schemas of the kinds and their parts, for the OpenAPI document's components, by name."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        schema = kind.model_json_schema(ref_template=f"{_COMPONENTS}{{model}}")
        found |= schema.pop("$defs", {}) | {kind.__name__: schema}
    return found


def references() -> list[dict[str, str]]:
    """References to the kinds there."""
    return [{"$ref": f"{_COMPONENTS}{kind.__name__}"} for kind in KINDS]


def parse(body: bytes, content_type: str, source: str, max_bytes: int) -> Iterator[Example]:
    """The examples in a request's body. Raises Problem, which names the place."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/plain":
        placed: Iterable[tuple[str, Any]] = [("", {"text": _decoded(body), "source": source})]
    elif kind == "application/json":
        placed = _items(body)
    elif kind in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        placed = parse_lines(body)
    else:
        detail = f"Content-Type is {kind or 'missing'}; send application/json, application/x-ndjson or text/plain."
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    for place, document in placed:
        yield validated(document, place, max_bytes)


def _items(body: bytes) -> Iterable[tuple[str, Any]]:
    check_size(body)
    document = parsed(_decoded(body))
    if not isinstance(document, list):
        return [("", document)]
    _check_count(len(document))
    return ((f"item {number}: ", item) for number, item in enumerate(document, 1))


def parse_lines(body: bytes) -> Iterator[tuple[str, Any]]:
    """The JSON document in each non-empty line, with its place for error messages. Raises Problem."""
    check_size(body)
    # Blank lines count, too. Not splitlines(): a JSON string may contain other line separators.
    text = _decoded(body).rstrip()
    _check_count(text.count("\n") + bool(text))
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}: ", parsed(line, f"line {number}: ")


def _check(example: Example, place: str, max_bytes: int) -> None:
    """Refuse an example that is empty or too long. Raises Problem naming place and field."""
    words = example.words()
    for name, text in words.items():
        if not text.strip():
            detail = f"{place}The {name} is empty. Send some words."
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param=name)
    size = sum(len(text.encode()) for text in words.values())
    if size > max_bytes:
        name = " with its ".join(words)
        limit = f"at most {max_bytes:,} are allowed (setting max_text_bytes)"
        detail = f"{place}The {name} is {size:,} bytes; {limit}. Split it."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, param=next(iter(words)))


def _decoded(body: bytes) -> str:
    """The body as text. Raises Problem."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        detail = f"The body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Send UTF-8."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail) from error


def validated(document: Any, place: str, max_bytes: int) -> Example:
    """The example in a document. Raises Problem."""
    try:
        example = _kind(document, place).model_validate(document)
    except ValidationError as error:
        detail, param = explain(error.errors(include_url=False))
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, place + detail, param=param) from error
    _check(example, place, max_bytes)
    return example


def _kind(document: Any, place: str) -> type[Example]:
    """The kind of example by a document's fields. Raises Problem when they belong to two kinds."""
    named = document if isinstance(document, dict) else {}
    groups = (("text", "label"), ("prompt", "completion"), ("messages",))
    found = [fields for group in groups if (fields := [name for name in group if name in named])]
    if len(found) > 1:
        detail = (
            f"{place}{found[1][-1]} cannot be combined with {found[0][-1]}. Send a text alone, a text with its label, "
            "a prompt with its completion, or the messages of a chat."
        )
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param=found[1][-1])
    if not found or "text" in found[0] or "label" in found[0]:
        return LabelledIn if "label" in named else PlainIn
    return ChatIn if "messages" in found[0] else CompletionIn


def _check_count(count: int) -> None:
    """Refuse no texts, and too many. Raises Problem."""
    if not count:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The body contains no text. Send at least one.")
    if count > MAX_TEXTS:
        detail = f"The body contains {count:,} texts; at most {MAX_TEXTS:,} are allowed. Send them in parts."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
