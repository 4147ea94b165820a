"""The dashboard at /: static files, which get their data from the API; and signing in a browser."""

import secrets
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from pocketllm.api.bodies import Body
from pocketllm.api.dependencies import json_only
from pocketllm.api.errors import Problem
from pocketllm.api.security.tokens import Credentials

router = APIRouter(tags=["dashboard"])

_FILES = {
    "page.html": "text/html",
    **{f"{name}.js": "text/javascript" for name in ("app", "call", "dom", "jobs", "plot", "suggest", "texts")},
    "style.css": "text/css",
}
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
_CODE_FOR = timedelta(minutes=2)


@router.get("/", response_class=Response)
def page() -> Response:
    """The dashboard. Open without a token: it holds nothing, and asks for one."""
    return _file("page.html")


@router.get("/dashboard/{name}", response_class=Response)
def part(name: str) -> Response:
    """A part of the page."""
    if name not in _FILES:
        raise Problem(HTTPStatus.NOT_FOUND, f"The dashboard has no part {name[:80]!r}.")
    return _file(name)


def _file(name: str) -> Response:
    content = (files("pocketllm.api.dashboard") / "static" / name).read_bytes()
    return Response(content, media_type=_FILES[name], headers=_HEADERS)


class Sessions:
    """One-time codes that sign a browser in. They expire soon, since browsers keep URLs in their history."""

    def __init__(self, credentials: Credentials, now: Callable[[], datetime]) -> None:
        self._credentials, self._now, self._lock = credentials, now, threading.Lock()
        self._codes: dict[str, datetime] = {}

    def code(self) -> str:
        """A new code."""
        with self._lock:
            now = self._now()
            self._codes = {code: until for code, until in self._codes.items() if until > now}
            code = secrets.token_urlsafe(32)
            self._codes[code] = now + _CODE_FOR
            return code

    def token(self, code: str) -> str | None:
        """A token for a code; None for an invalid code."""
        with self._lock:
            until = self._codes.pop(code, None)
        return self._credentials.session() if until is not None and until > self._now() else None

    def end(self, token: str) -> None:
        """Sign a browser out."""
        self._credentials.end_session(token)


class CodeOut(BaseModel):
    """A code that signs a browser in, by /#code=CODE."""

    code: str
    seconds: float = Field(description="For how long it is good; once.")


class CodeIn(Body):
    """A code."""

    code: str = Field(min_length=1, max_length=200)


class SessionOut(BaseModel):
    """A token for this browser, good for thirty days, until it signs out, or the daemon stops."""

    token: str


def sessions_of(request: Request) -> Sessions:
    """The sessions that the app was made with."""
    sessions = request.app.state.sessions
    assert isinstance(sessions, Sessions)
    return sessions


SessionsDep = Annotated[Sessions, Depends(sessions_of)]


@router.post("/sessions", status_code=HTTPStatus.CREATED)
def begin(sessions: SessionsDep) -> CodeOut:
    """A code by which a browser signs in without its user seeing a token."""
    return CodeOut(code=sessions.code(), seconds=_CODE_FOR.total_seconds())


@router.post("/sessions/redeem", dependencies=[Depends(json_only)])
def redeem(sessions: SessionsDep, body: CodeIn) -> SessionOut:
    """A token for a code. Open without a token; a code is good once."""
    token = sessions.token(body.code)
    if token is None:
        detail = "This code is not good any more: `pocketllm dashboard` opens the page with a new one."
        raise Problem(HTTPStatus.FORBIDDEN, detail, param="code")
    return SessionOut(token=token)


@router.delete("/sessions", status_code=HTTPStatus.NO_CONTENT)
def sign_out(request: Request, sessions: SessionsDep) -> None:
    """Revoke the token of the browser that asks."""
    sessions.end(request.headers["authorization"].partition(" ")[2].strip())
