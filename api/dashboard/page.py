"""The dashboard at /: static files, which get their data from the API; and signing in a browser."""

from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePath
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from pocketllm.api.dependencies import NO_TOKEN
from pocketllm.api.errors import Problem
from pocketllm.api.security.sessions import CODE, SESSION, Sessions, cookie_name

router = APIRouter(tags=["dashboard"])

_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_STATIC = files("pocketllm.api.dashboard") / "static"
_FILES = {file.name: file for file in _STATIC.iterdir() if PurePath(file.name).suffix in _KINDS}
_HEADERS = {
    # No external or inline content, and no embedding in frames.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@router.get("/", response_class=Response, openapi_extra=NO_TOKEN)
def page() -> Response:
    """The dashboard. No token needed: the page contains no data and asks you to sign in."""
    return _file("page.html")


@router.get("/dashboard/{name}", response_class=Response, openapi_extra=NO_TOKEN)
def part(name: str) -> Response:
    """A file of the dashboard."""
    if name not in _FILES:
        raise Problem(HTTPStatus.NOT_FOUND, f"The dashboard has no file {name[:80]!r}.")
    return _file(name)


def _file(name: str) -> Response:
    return Response(_FILES[name].read_bytes(), media_type=_KINDS[PurePath(name).suffix], headers=_HEADERS)


class CodeOut(BaseModel):
    """A one-time code that signs a browser in at /#code=CODE."""

    code: str
    seconds: float = Field(description="How long the code is valid.")


class SessionOut(BaseModel):
    """Half of a session; the cookie is the other half."""

    page_key: str = Field(description="Send it as `X-Page-Key`, with the cookie.")


def sessions_of(request: Request) -> Sessions:
    """The sessions that the app was made with."""
    sessions = request.app.state.sessions
    assert isinstance(sessions, Sessions)
    return sessions


SessionsDep = Annotated[Sessions, Depends(sessions_of)]


@router.post("/sessions", status_code=HTTPStatus.CREATED)
def begin(request: Request, sessions: SessionsDep) -> CodeOut:
    """Create a one-time code that signs a browser in, so that nobody has to paste an access token."""
    return CodeOut(code=sessions.code(request.state.token), seconds=CODE.total_seconds())


@router.post("/sessions/redeem")
def redeem(request: Request, response: Response, sessions: SessionsDep) -> SessionOut:
    """Sign a browser in. Send the access token or a one-time code as the bearer token. The session ends after seven
    days, or when the access token is revoked.
    """
    cookie, page_key = sessions.begin(request.state.token)
    age = int(SESSION.total_seconds())
    response.set_cookie(cookie_name(request), cookie, max_age=age, httponly=True, samesite="strict")
    return SessionOut(page_key=page_key)


@router.delete("/sessions", status_code=HTTPStatus.NO_CONTENT)
def sign_out(request: Request, response: Response, sessions: SessionsDep) -> None:
    """Sign out all browsers that were signed in with the same access token."""
    sessions.end(request.state.token)
    response.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
