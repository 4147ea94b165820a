"""Error responses: one table from exceptions to statuses, one shape for all errors.

The shape is RFC 9457's, with an `error` object beside it for OpenAI's clients.
"""

import errno
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pocketllm.api.responses import ProblemResponse
from pocketllm.daemon import errors as daemon
from pocketllm.daemon.documents import explain
from pocketllm.engine import errors as engine
from pocketllm.storage import errors as storage

#: The first matching class decides.
STATUSES: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (storage.NotFound, HTTPStatus.NOT_FOUND),
    (storage.WrongState, HTTPStatus.CONFLICT),
    (storage.QuotaExceeded, HTTPStatus.TOO_MANY_REQUESTS),
    (storage.DatabaseFull, HTTPStatus.INSUFFICIENT_STORAGE),
    (storage.StorageTrouble, HTTPStatus.SERVICE_UNAVAILABLE),
    (storage.StorageError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (daemon.TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (daemon.InvalidValue, HTTPStatus.UNPROCESSABLE_ENTITY),
    (daemon.NothingToLearn, HTTPStatus.CONFLICT),
    (daemon.BadSettings, HTTPStatus.CONFLICT),
    (daemon.ModelNotReady, HTTPStatus.SERVICE_UNAVAILABLE),
    (daemon.GeneratorBusy, HTTPStatus.SERVICE_UNAVAILABLE),
    (daemon.GeneratorFailed, HTTPStatus.SERVICE_UNAVAILABLE),
    (daemon.GenerationTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (daemon.ClientGone, HTTPStatus.REQUEST_TIMEOUT),  # which nobody reads
    (ClientDisconnect, HTTPStatus.REQUEST_TIMEOUT),  # likewise; before the body was complete
    (daemon.DaemonError, HTTPStatus.INTERNAL_SERVER_ERROR),
    # The request is valid: with more memory, or another model, it would succeed.
    (engine.DoesNotFit, HTTPStatus.CONFLICT),
    # Likewise: the adapter can be exported in the other format.
    (engine.CannotExport, HTTPStatus.CONFLICT),
    (engine.BadRequest, HTTPStatus.UNPROCESSABLE_ENTITY),
    (engine.EngineError, HTTPStatus.INTERNAL_SERVER_ERROR),
)

#: Requests with these statuses may succeed after this time.
_RETRIABLE = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE)
_RETRY_SECONDS = 5


class ErrorOut(BaseModel):
    """The error in the form that OpenAI's clients read."""

    message: str
    type: str = Field(description="`server_error` for a status of 500 or above, else `invalid_request_error`.")
    code: str = Field(description="For programs, such as `missing_token`, `not_found` or `nothing_to_learn`.")
    param: str | None = Field(description="The invalid field; null if the error is not about one field.")


class ProblemOut(BaseModel):
    """An error (RFC 9457). `detail` says what to do next."""

    type: str
    title: str
    status: int
    detail: str
    error: ErrorOut


def _problem_schema() -> dict[str, Any]:
    """Without $defs, which OpenAPI would resolve elsewhere."""
    schema = ProblemOut.model_json_schema()
    schema["properties"]["error"] = schema.pop("$defs")["ErrorOut"]
    return schema


#: The error responses of every route, for OpenAPI.
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": (
            "An error: 401 missing or invalid access token; 403 missing scope, or foreign Host or Origin; 404 not "
            "found; 409 wrong state; 413 too large; 415 unsupported content type; 422 invalid value; 429 too many "
            "requests and 503 busy or not ready (see Retry-After); 507 disk full; 500 internal error"
        ),
        "content": {ProblemResponse.media_type: {"schema": _problem_schema()}},
    }
}


class Problem(HTTPException):
    """An error response. Routes raise it; `problem_of` makes one of any other exception."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """code: for programs; by default from the status. retry_seconds: until it may succeed; by default likewise."""
        self.status, self.param, self.code = status, param, code or status.name.lower()
        named = dict(headers or {})
        if retry_seconds is not None or status in _RETRIABLE or code == "not_yet":
            named["Retry-After"] = str(retry_seconds or _RETRY_SECONDS)
        elif status is HTTPStatus.CONFLICT:  # OpenAI's client would retry it twice, in vain
            named["X-Should-Retry"] = "false"
        if status is HTTPStatus.UNAUTHORIZED:
            named["WWW-Authenticate"] = "Bearer"
        super().__init__(status, detail, named)

    def body(self) -> dict[str, Any]:
        """The document."""
        kind = "invalid_request_error" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        error = ErrorOut(message=self.detail, type=kind, code=self.code, param=self.param)
        title, status = self.status.phrase, int(self.status)
        return ProblemOut(type="about:blank", title=title, status=status, detail=self.detail, error=error).model_dump()

    def response(self) -> ProblemResponse:
        """The document and its headers."""
        return ProblemResponse(self.body(), self.status, self.headers)


def problem_of(error: Exception) -> Problem:
    """The response to an exception. Raises the exception where none is known."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            # Without the first part of each location: body, query or path.
            error = daemon.InvalidValue(
                *explain([{**finding, "loc": finding["loc"][1:]} for finding in error.errors()])
            )
        case HTTPException(status_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            error = daemon.TooLarge()
        case HTTPException():
            status = HTTPStatus(error.status_code)
            return Problem(status, _HINTS.get(status, error.detail), headers=error.headers)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            detail = f"The disk is full ({error.strerror}). Free some space, then try again."
            return Problem(HTTPStatus.INSUFFICIENT_STORAGE, detail, code="disk_full")
    for kind, status in STATUSES:
        if isinstance(error, kind):
            code = re.sub("(?!^)([A-Z])", r"_\1", type(error).__name__).lower()  # NothingToLearn is nothing_to_learn
            return Problem(status, str(error), code=code, param=getattr(error, "param", None))
    raise error


def install(app: FastAPI) -> None:
    """Install the exception handlers."""

    async def known(request: Request, error: Exception) -> ProblemResponse:
        problem = problem_of(error)
        response = problem.response()
        if problem.status is HTTPStatus.METHOD_NOT_ALLOWED:  # the router names the methods of one function alone
            response.headers["Allow"] = ", ".join(sorted(_methods_at(request)))
        return response

    async def unexpected(_request: Request, _error: Exception) -> ProblemResponse:
        detail = "Internal error; the daemon's log has the details. Data that was acknowledged with 2xx is not lost."
        headers = {"Connection": "close"}  # as uvicorn does after an exception
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail, code="internal_error", headers=headers).response()

    kinds: list[type[Exception]] = [HTTPException, RequestValidationError, ClientDisconnect, OSError]
    kinds += [storage.StorageError, daemon.DaemonError, engine.EngineError]
    for kind in kinds:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(Exception, unexpected)


def _methods_at(request: Request) -> set[str]:
    """The methods of the routes at the request's path: /jobs/plan is none at /jobs/{job_id}."""
    fitting = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(request.url.path)]
    path = min((route.path or "" for route in fitting), key=lambda path: path.count("{"))
    return {method for route in fitting if route.path == path for method in route.methods or ()}


_HINTS = {
    HTTPStatus.BAD_REQUEST: "The body cannot be read. Send JSON in UTF-8, or a file as multipart/form-data.",
    HTTPStatus.NOT_FOUND: "There is no such route. docs/api.md and GET /openapi.json list all routes.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This route does not support that method; the Allow header lists those it does.",
}
