"""What routes ask of a request before they look at it."""

from http import HTTPStatus

from fastapi import Request

from pocketllm.api.errors import Problem


async def json_only(request: Request) -> None:
    """Refuse a body that does not say that it is JSON: a form on a web page cannot say so."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and (kind or await request.body()):
        detail = f"Content-Type is {kind or 'missing'}; send application/json."
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
