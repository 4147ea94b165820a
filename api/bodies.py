"""How bodies are read: what is refused before anything is done with it, and the examples in one."""

from collections.abc import Callable, Coroutine, Iterable, Iterator
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from pocketllm.api.errors import Problem, problem_of
from pocketllm.daemon.documents import Example, validated
from pocketllm.daemon.errors import InvalidValue

Result = TypeVar("Result")

#: Larger bodies are parsed in a thread.
LARGE_BYTES = 64 * 1024
#: The most texts in a request: bounds the daemon's memory, and how long a worker waits for the database.
MAX_TEXTS = 30_000
#: The most values in a JSON text, and the most objects and lists in one that is no text to learn.
MAX_VALUES, MAX_OBJECTS = 250_000, 10_000
#: The largest integer that every JSON parser reads exactly.
MAX_SEED = 2**53 - 1


class JSONRoute(APIRoute):
    """A route with a JSON body, which needs its content type. A large one is parsed in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle, takes_body = super().get_route_handler(), self.body_field is not None

        async def with_json(request: Request) -> Response:
            if takes_body:
                _check_kind(request.headers)
            return await handle(_Request(request.scope, request.receive))

        return with_json


def _check_kind(headers: Headers) -> None:
    """Refuse a body without the content type JSON, which a form on a web page cannot send. Raises Problem."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if kind != "application/json" and (kind or has_body):
        detail = f"Content-Type is {kind or 'missing'}; send application/json."
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)


class _Request(Request):
    async def json(self) -> Any:
        body = await self.body()

        def parse() -> Any:
            check_size(body, MAX_OBJECTS)
            return parsed(body)

        try:
            return await unless_large(body, parse)
        except InvalidValue as error:  # of which FastAPI would tell nothing
            raise problem_of(error) from error


async def unless_large(body: bytes, parse: Callable[[], Result]) -> Result:
    """What `parse` returns, which runs in a thread if the body is large."""
    return await run_in_threadpool(parse) if len(body) > LARGE_BYTES else parse()


def parsed(text: bytes | str, place: str = "") -> Any:
    """The document in a JSON text. Raises InvalidValue, which names the place."""
    try:
        return from_json(text)  # which refuses half a surrogate pair
    except ValueError as error:
        raise InvalidValue(f"{place}This is not valid JSON: {error}.") from error


def check_size(text: bytes, max_objects: int = MAX_VALUES) -> None:
    """Refuse a JSON text with too many values, by its commas and brackets, before any is made. Raises InvalidValue."""
    if len(text) <= max_objects:
        return
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') <= 4 * MAX_VALUES:  # a string has two quotes, and may have a name
        outside = b"".join(text.split(b'"')[::2])
        objects = outside.count(b"{") + outside.count(b"[")
        if objects <= max_objects and objects + outside.count(b",") <= MAX_VALUES:
            return
    detail = f"The body has too many values: at most {MAX_VALUES:,}, and {max_objects:,} objects or lists, are allowed."
    raise InvalidValue(f"{detail} Send less, or in parts.")


def parse(body: bytes, content_type: str, source: str, max_bytes: int) -> Iterator[Example]:
    """The examples in a request's body. Raises InvalidValue, which names the place, or Problem."""
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
    """The JSON document in each non-empty line, with its place for error messages. Raises InvalidValue."""
    check_size(body)
    # Blank lines count, too. Not splitlines(): a JSON string may contain other line separators.
    text = _decoded(body).rstrip()
    _check_count(text.count("\n") + bool(text))
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}: ", parsed(line, f"line {number}: ")


def _decoded(body: bytes) -> str:
    """The body as text. Raises InvalidValue."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        detail = f"The body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Send UTF-8."
        raise InvalidValue(detail) from error


def _check_count(count: int) -> None:
    """Refuse no texts, and too many. Raises InvalidValue."""
    if not count:
        raise InvalidValue("The body contains no text. Send at least one.")
    if count > MAX_TEXTS:
        raise InvalidValue(f"The body contains {count:,} texts; at most {MAX_TEXTS:,} are allowed. Send them in parts.")
