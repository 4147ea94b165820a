"""Access: loopback host names only, no foreign origins, and a token with the right scope.

On a phone every app reaches 127.0.0.1, so the token is the boundary. A route that is not listed here needs admin.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from pocketllm.api.errors import TOO_LARGE, code_for, problem_response
from pocketllm.api.security.rates import Rate
from pocketllm.api.security.tokens import Caller, Credentials, Scope

#: Routes without content, which never need a token; the dashboard's page asks for one.
_EMPTY = (("GET", re.compile(r"/health|/|/dashboard/[^/]+")), ("POST", re.compile("/sessions/redeem")))
#: GET routes without text, which need no token unless the setting open_routes is false.
OPEN_ROUTES = re.compile(r"/(status|metrics|runs|ledger|history|events|jobs|jobs/[^/]+)")

#: The routes of the scopes below admin.
_ALLOWED: tuple[tuple[str, re.Pattern[str], frozenset[Scope]], ...] = (
    ("POST", re.compile("/texts"), frozenset({Scope.INGEST})),
    ("POST", re.compile("/status/screen"), frozenset({Scope.INGEST})),
    ("POST", re.compile("/status/what-if"), frozenset({Scope.INGEST, Scope.GENERATE})),
    ("POST", re.compile("/generate|/compare|/v1/chat/completions|/v1/completions"), frozenset({Scope.GENERATE})),
    ("GET", re.compile("/models|/adapters|/v1/models(/.+)?"), frozenset({Scope.GENERATE})),
)


def needs_token(method: str, path: str, *, open_routes: bool) -> bool:
    """Whether a route needs a token. open_routes: the setting."""
    if any(method == verb and route.fullmatch(path) for verb, route in _EMPTY):
        return False
    return not (open_routes and method in ("GET", "HEAD") and OPEN_ROUTES.fullmatch(path))


def scopes_for(method: str, path: str) -> frozenset[Scope]:
    """The scopes that allow a route; admin always does."""
    allowed = (scopes for verb, route, scopes in _ALLOWED if verb == method and route.fullmatch(path))
    return next(allowed, frozenset[Scope]()) | {Scope.ADMIN}


def add_security(schema: dict[str, Any], *, open_routes: bool) -> None:
    """Add to an OpenAPI document which routes need a token, and the scopes that allow each."""
    token = {"type": "http", "scheme": "bearer", "description": "`pocketllm token` prints the owner's."}
    schema["components"]["securitySchemes"] = {"token": token}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            needed = needs_token(method.upper(), path, open_routes=open_routes)
            operation["security"] = [{"token": sorted(scopes_for(method.upper(), path))}] if needed else []


@dataclass(frozen=True)
class Refusal:
    """An error response in place of the route's."""

    status: HTTPStatus
    detail: str
    code: str
    retry_seconds: int | None = None


class Guard:
    """ASGI middleware that passes a request on, or answers with an error."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        credentials: Credentials,
        rate: Rate,
        max_body_bytes: int,
        max_requests: int,
        open_routes: bool,
    ) -> None:
        """rate: per app. max_requests: concurrent ones. open_routes: whether OPEN_ROUTES need no token."""
        self._app, self._credentials, self._rate = app, credentials, rate
        self._max_body_bytes, self._max_requests, self._open_routes = max_body_bytes, max_requests, open_routes
        self._running = 0

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if connection["type"] != "http":
            await self._app(connection, receive, send)
            return
        refusal = self._refusal(connection, Headers(scope=connection))
        if refusal is not None:
            await _refuse(refusal, connection, receive, send)
            return
        self._running += 1
        try:
            await self._app(connection, receive, send)
        finally:
            self._running -= 1

    def _refusal(self, connection: Connection, headers: Headers) -> Refusal | None:
        """The first reason to refuse this request; None passes it on."""
        checks: tuple[Callable[[], Refusal | None], ...] = (
            lambda: _foreign(headers),
            lambda: self._too_much(headers),
            lambda: self._not_allowed(connection, headers),
        )
        return next((refusal for check in checks if (refusal := check()) is not None), None)

    def _too_much(self, headers: Headers) -> Refusal | None:
        # A body of unknown length is counted while it is read (app.py).
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            return Refusal(status, TOO_LARGE, code_for(status))
        if self._running >= self._max_requests:
            detail = f"{self._running} requests are being answered (setting max_requests). Try again in a second."
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, detail, "busy", retry_seconds=1)
        return None

    def _not_allowed(self, connection: Connection, headers: Headers) -> Refusal | None:
        method, path = connection["method"], connection["path"]
        if not needs_token(method, path, open_routes=self._open_routes):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            detail = 'This needs a token: send "Authorization: Bearer TOKEN"; `pocketllm token` prints it.'
            return Refusal(HTTPStatus.UNAUTHORIZED, detail, "missing_token")
        caller = self._credentials.caller(given.strip())
        if caller is None:
            detail = "The token is wrong; `pocketllm token` prints the right one."
            return Refusal(HTTPStatus.UNAUTHORIZED, detail, "bad_token")
        connection.setdefault("state", {})["caller"] = caller.name
        return _out_of_scope(caller, method, path) or self._too_often(caller)

    def _too_often(self, caller: Caller) -> Refusal | None:
        if caller.is_owner or (wait := self._rate.wait_seconds(caller.name)) <= 0:
            return None
        detail = f"The app {caller.name!r} asks too often (setting app_requests_per_second)."
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, detail, "too_often", retry_seconds=math.ceil(wait))


def _foreign(headers: Headers) -> Refusal | None:
    """Refuse a foreign Host (DNS rebinding) or Origin."""
    host = headers.get("host", "")
    if not is_local(f"//{host}"):
        return Refusal(HTTPStatus.FORBIDDEN, f"Host {host[:80]!r} is not local. Use http://127.0.0.1.", "foreign_host")
    origin = headers.get("origin")
    if origin is not None and not is_local(origin):
        return Refusal(HTTPStatus.FORBIDDEN, f"Web pages from {origin[:80]!r} are not let in.", "foreign_origin")
    if headers.get("sec-fetch-site") == "cross-site":
        return Refusal(HTTPStatus.FORBIDDEN, "Requests from other web sites are not let in.", "cross_site")
    return None


def _out_of_scope(caller: Caller, method: str, path: str) -> Refusal | None:
    needed = scopes_for(method, path)
    if caller.scopes & needed:
        return None
    has, least = " and ".join(sorted(caller.scopes)), min(needed, key=list(Scope).index)
    detail = (
        f"The token {caller.name!r} has the scope {has}; this takes {least}. "
        f"`pocketllm token create NAME --scope {least}` makes such a one."
    )
    return Refusal(HTTPStatus.FORBIDDEN, detail, "out_of_scope")


def is_local(url: str) -> bool:
    """Whether a URL's host is this device: localhost in any case, also with the root's dot, or a loopback address."""
    try:
        parts = urlsplit(url)
        name = parts.hostname
        parts.port  # noqa: B018 - raises ValueError for what is no port
    except ValueError:
        return False
    if name is None or "@" in parts.netloc:
        return False
    if name in ("localhost", "localhost."):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


async def _refuse(refusal: Refusal, connection: Connection, receive: Receive, send: Send) -> None:
    answer = problem_response(refusal.status, refusal.detail, code=refusal.code)
    if refusal.retry_seconds is not None:
        answer.headers["Retry-After"] = str(refusal.retry_seconds)
    await answer(connection, receive, send)
