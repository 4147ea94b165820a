"""What all JSON bodies have in common: what is refused before anything is done with it."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from pocketllm.api.errors import Problem

Result = TypeVar("Result")

#: Larger bodies are parsed in a thread.
LARGE_BYTES = 64 * 1024
#: The most values in a JSON text, and the most objects and lists in one that is no text to learn.
MAX_VALUES, MAX_OBJECTS = 250_000, 10_000
#: No request has as many fields.
MAX_FIELDS = 100
#: The largest integer that every JSON parser reads exactly.
MAX_SEED = 2**53 - 1


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

        return await unless_large(body, parse)


async def unless_large(body: bytes, parse: Callable[[], Result]) -> Result:
    """What `parse` returns, which runs in a thread if the body is large."""
    return await run_in_threadpool(parse) if len(body) > LARGE_BYTES else parse()


def parsed(text: bytes | str, place: str = "") -> Any:
    """The document in a JSON text. Raises Problem, which names the place."""
    try:
        return from_json(text)  # which refuses half a surrogate pair
    except ValueError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{place}This is not valid JSON: {error}.") from error


def check_size(text: bytes, max_objects: int = MAX_VALUES) -> None:
    """Refuse a JSON text with too many values, by its commas and brackets, before any is made. Raises Problem."""
    if len(text) <= max_objects:
        return
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') <= 4 * MAX_VALUES:  # a string has two quotes, and may have a name
        outside = b"".join(text.split(b'"')[::2])
        objects = outside.count(b"{") + outside.count(b"[")
        if objects <= max_objects and objects + outside.count(b",") <= MAX_VALUES:
            return
    detail = f"The body has too many values: at most {MAX_VALUES:,}, and {max_objects:,} objects or lists, are allowed."
    raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{detail} Send less, or in parts.")
