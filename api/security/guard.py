"""Access: loopback host names only, no foreign origins, and a token with the right scope.

On a phone every app reaches 127.0.0.1, so the token is the boundary. A route that is not listed here needs admin.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from pocketllm.api.errors import TOO_LARGE, code_for, problem_response
from pocketllm.api.security.rates import Rate
from pocketllm.api.security.tokens import OWNERS, Caller, Credentials, Scope

#: Routes without content, which never need a token; the dashboard's page asks for one.
_EMPTY = (("GET", re.compile(r"/health|/|/dashboard/[^/]+")), ("POST", re.compile("/sessions/redeem")))
#: The GET route that needs no token unless the setting open_routes is false. Without one it answers in numbers alone.
OPEN_ROUTE = "/jobs"

#: The name under which callers without a token are counted; no app can have it.
_ANONYMOUS = ""
#: Simultaneous requests of all callers without a token, and of one app. The owner is never refused.
_MOST_ANONYMOUS, _MOST_OF_AN_APP = 8, 16
#: A body without a token: that of POST /sessions/redeem.
_ANONYMOUS_BODY_BYTES = 1024
#: More digits than any length has.
_LENGTH_DIGITS = 15
#: The code of a WebSocket that is refused (RFC 6455, 7.4.1).
_POLICY_VIOLATION = 1008

#: The routes of the scopes below admin.
_ALLOWED: tuple[tuple[str, re.Pattern[str], frozenset[Scope]], ...] = (
    ("POST", re.compile("/texts"), frozenset({Scope.INGEST})),
    ("POST", re.compile("/status/screen"), frozenset({Scope.INGEST})),
    ("POST", re.compile("/status/what-if"), frozenset({Scope.INGEST, Scope.GENERATE})),
    (
        "POST",
        re.compile("/generate|/compare|/suggest|/classify|/v1/chat/completions|/v1/completions"),
        frozenset({Scope.GENERATE}),
    ),
    (
        "GET",
        re.compile("/status|/metrics|/runs|/ledger|/history|/events|/jobs|/jobs/[^/]+"),
        frozenset({Scope.MONITOR}),
    ),
    ("GET", re.compile("/models|/adapters|/v1/models(/.+)?"), frozenset({Scope.GENERATE})),
)


def needs_token(method: str, path: str, *, open_routes: bool) -> bool:
    """Whether a route needs a token. open_routes: the setting."""
    if any(method == verb and route.fullmatch(path) for verb, route in _EMPTY):
        return False
    return not (open_routes and method in ("GET", "HEAD") and path == OPEN_ROUTE)


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
        """rate: per app. max_requests: concurrent ones of all apps. open_routes: whether OPEN_ROUTE needs no token."""
        self._app, self._credentials, self._rate = app, credentials, rate
        self._max_body_bytes, self._max_requests, self._open_routes = max_body_bytes, max_requests, open_routes
        self._running: Counter[str] = Counter()  #: by caller

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Handle one request. Nothing is spent on a caller before it is known who calls."""
        if connection["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if connection["type"] != "http":
            await self._app(connection, receive, send)
            return
        headers = Headers(scope=connection)
        caller, refusal = self._identified(headers)
        name = caller.name if caller else _ANONYMOUS
        refusal = _foreign(headers) or refusal or self._not_allowed(caller, connection)
        refusal = refusal or self._too_much(name, headers) or self._too_often(name)
        if refusal is not None:
            await _refuse(refusal, connection, receive, send)
            return
        connection.setdefault("state", {}).update(caller=name, scopes=caller.scopes if caller else frozenset())
        self._running[name] += 1
        try:
            received = receive if caller else _at_most(_ANONYMOUS_BODY_BYTES, receive)
            await self._app(connection, received, _not_stored(send))
        finally:
            self._running[name] -= 1
            if not self._running[name]:
                del self._running[name]

    def _identified(self, headers: Headers) -> tuple[Caller | None, Refusal | None]:
        """The caller; None without a token. The refusal is of a wrong token."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            return None, None
        caller = self._credentials.caller(given.strip())
        if caller is not None:
            return caller, None
        detail = "The token is wrong; `pocketllm token` prints the right one."
        return None, Refusal(HTTPStatus.UNAUTHORIZED, detail, "bad_token")

    def _too_much(self, name: str, headers: Headers) -> Refusal | None:
        # A body of unknown length is counted while it is read (app.py).
        length, longest = headers.get("content-length", ""), self._max_body_bytes
        if name == _ANONYMOUS:
            longest = min(longest, _ANONYMOUS_BODY_BYTES)
        if length.isdecimal() and (len(length) > _LENGTH_DIGITS or int(length) > longest):
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            return Refusal(status, TOO_LARGE, code_for(status))
        if name in OWNERS:
            return None
        most = _MOST_ANONYMOUS if name == _ANONYMOUS else _MOST_OF_AN_APP
        others = sum(count for other, count in self._running.items() if other not in OWNERS)
        if self._running[name] < most and others < self._max_requests:
            return None
        detail = f"{others} requests are being answered (setting max_requests). Try again in a second."
        return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, detail, "busy", retry_seconds=1)

    def _too_often(self, name: str) -> Refusal | None:
        if name in OWNERS or (wait := self._rate.wait_seconds(name)) <= 0:
            return None
        who = "Callers without a token ask" if name == _ANONYMOUS else f"The app {name!r} asks"
        detail = f"{who} too often (setting app_requests_per_second)."
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, detail, "too_often", retry_seconds=math.ceil(wait))

    def _not_allowed(self, caller: Caller | None, connection: Connection) -> Refusal | None:
        method, path = connection["method"], connection["path"]
        if not needs_token(method, path, open_routes=self._open_routes):
            return None
        if caller is None:
            detail = 'This needs a token: send "Authorization: Bearer TOKEN"; `pocketllm token` prints it.'
            return Refusal(HTTPStatus.UNAUTHORIZED, detail, "missing_token")
        return _out_of_scope(caller, method, path)


def _at_most(limit: int, receive: Receive) -> Receive:
    """Receive a body up to a limit; beyond it, as if the client had gone."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= limit else {"type": "http.disconnect"}

    return bounded


def _not_stored(send: Send) -> Send:
    """Send answers that no cache keeps, but for those that say otherwise themselves."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message["headers"]).setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def _foreign(headers: Headers) -> Refusal | None:
    """Refuse a foreign Host (DNS rebinding) or Origin."""
    host = headers.get("host", "")
    if not is_local(f"//{host}"):
        return Refusal(HTTPStatus.FORBIDDEN, f"Host {host[:80]!r} is not local. Use http://127.0.0.1.", "foreign_host")
    origin = headers.get("origin")
    if origin is not None and not (origin.lower().startswith(("http://", "https://")) and is_local(origin)):
        return Refusal(HTTPStatus.FORBIDDEN, f"Web pages from {origin[:80]!r} are not let in.", "foreign_origin")
    if headers.get("sec-fetch-site", "").lower() == "cross-site":
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
