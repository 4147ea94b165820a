"""Documents from outside: how they are checked, and the four kinds of text that are learned from."""

from collections.abc import Sequence
from reprlib import Repr
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pocketllm.daemon.errors import InvalidValue, TooLarge
from pocketllm.storage.repositories.texts import NewText, chat_text

DEFAULT_SOURCE = "unknown"
MAX_LABEL_CHARACTERS = 100
#: No request has as many fields.
MAX_FIELDS = 100
#: The most validation errors in a response, and the most characters of a refused name or value in it.
_FINDINGS = 5
_VALUE_CHARACTERS = 60
#: Shows the beginning of a value, however large it is.
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 4 * _VALUE_CHARACTERS


class Body(BaseModel):
    """A body or a part of one.

    Refused are values of another type than the schema's (a boolean or a string as a number), infinite numbers, and
    fields by the thousand.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _sound(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if len(values) > MAX_FIELDS:
            raise ValueError(f"{len(values):,} fields; at most {MAX_FIELDS} are allowed")
        # To JSON, 1.0 is an integer.
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in values.items()
        }


Parsed = TypeVar("Parsed", bound=BaseModel)

#: `_check` says it better than a pattern's error.
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


Example = PlainIn | CompletionIn | LabelledIn | ChatIn


def validated(document: Any, place: str, max_bytes: int) -> Example:
    """The example in a document from this place. Raises InvalidValue, which names the place and the field."""
    example = checked(_kind(document, place), document, place)
    _check(example, place, max_bytes)
    return example


def checked(kind: type[Parsed], document: Any, place: str) -> Parsed:
    """A document as one of this kind. Raises InvalidValue, which names the place and the field."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        detail, param = explain(error.errors(include_url=False))
        raise InvalidValue(place + detail, param) from error


def _kind(document: Any, place: str) -> type[Example]:
    """The kind of example by a document's fields. Raises InvalidValue when they belong to two kinds."""
    named = document if isinstance(document, dict) else {}
    groups = (("text", "label"), ("prompt", "completion"), ("messages",))
    found = [fields for group in groups if (fields := [name for name in group if name in named])]
    if len(found) > 1:
        detail = (
            f"{place}{found[1][-1]} cannot be combined with {found[0][-1]}. Send a text alone, a text with its label, "
            "a prompt with its completion, or the messages of a chat."
        )
        raise InvalidValue(detail, found[1][-1])
    if not found or "text" in found[0] or "label" in found[0]:
        return LabelledIn if "label" in named else PlainIn
    return ChatIn if "messages" in found[0] else CompletionIn


def _check(example: Example, place: str, max_bytes: int) -> None:
    """Refuse an example that is empty or too long. Raises InvalidValue."""
    words = example.words()
    for name, text in words.items():
        if not text.strip():
            raise InvalidValue(f"{place}The {name} is empty. Send some words.", name)
    size = sum(len(text.encode()) for text in words.values())
    if size > max_bytes:
        name = " with its ".join(words)
        limit = f"at most {max_bytes:,} are allowed (setting max_text_bytes)"
        raise TooLarge(f"{place}The {name} is {size:,} bytes; {limit}. Split it.", next(iter(words)))


#: Errors whose message names Python's classes.
_NO_OBJECT = ("model_type", "model_attributes_type")


def explain(findings: Sequence[Any]) -> tuple[str, str | None]:
    """pydantic's errors as sentences, with shortened values, and the field of the first one."""
    sentences = [_sentence(finding) for finding in findings[:_FINDINGS]]
    if len(findings) > _FINDINGS:
        sentences.append(f"And {len(findings) - _FINDINGS} more.")
    return " ".join(sentences), _field(findings[0])


def _sentence(finding: Any) -> str:
    message = "Input should be a JSON object" if finding["type"] in _NO_OBJECT else finding["msg"]
    message = message.removeprefix("Value error, ")
    return f"{_field(finding) or 'body'}: {message} (got {_cut(_SHORT.repr(finding.get('input')))})."


def _field(finding: Any) -> str | None:
    """The field's name, with dots between its parts; None for the whole document."""
    return _cut(".".join(str(part) for part in finding["loc"])) or None


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "..."
