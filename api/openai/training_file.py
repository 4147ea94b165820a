"""A fine-tuning file: JSON lines, each a chat, a prompt with its completion, or a text."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from pocketllm.api.errors import Problem, explain
from pocketllm.api.native.examples import Example, parse_lines, validated
from pocketllm.api.openai.schemas import ChatMessage

FINE_TUNE = "fine-tune"
#: What OpenAI's chats may hold beside their messages; nothing of it is learned.
_BESIDE = ("tools", "functions", "parallel_tool_calls")


def examples_in(data: bytes, *, source: str, max_bytes: int) -> Iterator[Example]:
    """The examples in a file, as texts from `source`. Raises Problem, which names the line that is wrong."""
    for place, document in parse_lines(data.removeprefix(b"\xef\xbb\xbf")):
        yield validated(_as_text(document, place, source), place, max_bytes)


def _as_text(document: Any, place: str, source: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{place}This is not a JSON object. {_EXPECTED}")
    if not document.keys() & {"messages", "prompt", "completion", "text"}:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{place}There is no text to train on. {_EXPECTED}")
    kept = {name: value for name, value in document.items() if name not in _BESIDE} | {"source": source}
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_message(message, place) for message in kept["messages"]]
    return kept


_EXPECTED = 'Each line must be {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}.'


def _message(message: Any, place: str) -> dict[str, Any]:
    """A message as OpenAI's files hold it, as one that can be learned."""
    try:
        plain: dict[str, Any] = dict(ChatMessage.model_validate(message).plain())
    except ValidationError as error:
        detail, param = explain(error.errors(include_url=False))
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, place + detail, param=param) from error
    weight = message.get("weight")
    return plain if weight is None else plain | {"weight": weight}
