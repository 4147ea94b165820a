"""Errors as answers: one table from exceptions to statuses, one shape for all of them.

The shape is RFC 9457's, with an `error` object beside it that OpenAI's client understands.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pocketllm.api.responses import ProblemResponse
from pocketllm.daemon import errors as daemon
from pocketllm.storage import errors as storage

#: The first class that fits decides.
STATUSES: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (storage.NotFound, HTTPStatus.NOT_FOUND),
    (storage.WrongState, HTTPStatus.CONFLICT),
    (storage.StorageError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (daemon.NothingToLearn, HTTPStatus.CONFLICT),
    (daemon.ModelNotReady, HTTPStatus.SERVICE_UNAVAILABLE),
    (daemon.GeneratorBusy, HTTPStatus.SERVICE_UNAVAILABLE),
    (daemon.GeneratorFailed, HTTPStatus.SERVICE_UNAVAILABLE),
    (daemon.BadGeneration, HTTPStatus.UNPROCESSABLE_ENTITY),
    (daemon.DaemonError, HTTPStatus.INTERNAL_SERVER_ERROR),
)

_RETRY_SECONDS = 5
#: The most of a refused value that is said back.
_VALUE_CHARACTERS = 60


class Problem(Exception):
    """An error that a route found out by itself."""

    def __init__(self, status: HTTPStatus, detail: str, *, param: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.param = status, detail, param


def problem_body(status: HTTPStatus, detail: str, *, code: str, param: str | None = None) -> dict[str, Any]:
    """The one shape of an error."""
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": detail,
        "error": {"message": detail, "type": kind, "code": code, "param": param},
    }


def problem_response(status: HTTPStatus, detail: str, *, code: str, param: str | None = None) -> ProblemResponse:
    """The answer to send for an error."""
    headers = {}
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return ProblemResponse(problem_body(status, detail, code=code, param=param), status, headers)


def status_of(error: Exception) -> HTTPStatus:
    """The status that the table gives for an error."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def code_of(error: Exception) -> str:
    """The error's class as a word for programs: NothingToLearn is nothing_to_learn."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def install(app: FastAPI) -> None:
    """Let the app answer every error in the one shape."""

    async def known(_request: Request, error: Exception) -> ProblemResponse:
        return problem_response(status_of(error), str(error), code=code_of(error))

    async def own(_request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, Problem)
        return problem_response(error.status, error.detail, code=error.status.name.lower(), param=error.param)

    async def invalid(_request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, RequestValidationError)
        detail, param = explain(error.errors())
        return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, detail, code="invalid_value", param=param)

    async def http(_request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        return problem_response(status, _HINTS.get(status, error.detail), code=status.name.lower())

    async def unexpected(_request: Request, _error: Exception) -> ProblemResponse:
        detail = "Something went wrong inside the daemon; its log says what. Nothing that was answered 2xx is lost."
        return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, detail, code="internal_error")

    for kind in (storage.StorageError, daemon.DaemonError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(Problem, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


_HINTS = {
    HTTPStatus.NOT_FOUND: "There is no such route. The README lists those there are.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This route does not take that method.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The request is too large (setting max_body_bytes). Send it in parts.",
}


def explain(problems: Any) -> tuple[str, str | None]:
    """pydantic's findings as sentences, and the first field's name. Long values are cut."""
    sentences, param = [], None
    for problem in problems:
        field = ".".join(str(part) for part in problem["loc"] if part != "body") or "body"
        param = param or field
        if problem["type"] == "json_invalid":
            sentences.append(f"The body is not valid JSON: {problem.get('ctx', {}).get('error', problem['msg'])}.")
            continue
        value = repr(problem.get("input"))
        shown = value if len(value) <= _VALUE_CHARACTERS else value[:_VALUE_CHARACTERS] + "..."
        sentences.append(f"{field}: {problem['msg'].removeprefix('Value error, ')} (got {shown}).")
    return " ".join(sentences), param
