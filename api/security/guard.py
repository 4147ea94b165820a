"""Access: loopback host names only, no foreign origins, and a token with the right scope.

On a phone every app reaches 127.0.0.1, so the token is the boundary. A route that names no scope needs admin.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from pocketllm.api.bodies import LARGE_BYTES
from pocketllm.api.errors import Problem, problem_of
from pocketllm.api.security.sessions import credential_of
from pocketllm.api.security.tokens import OWNER, Caller, Credentials, Scope
from pocketllm.daemon.errors import TooLarge

#: The GET route that needs no token unless the setting open_routes is false. Without one it answers in numbers alone.
OPEN_ROUTE = "GET", "/jobs"

#: The name under which callers without a token are counted; no app can have it.
_ANONYMOUS = ""
#: Simultaneous requests of an app; callers without a token count as one. The owner is never refused.
_MOST_OF_AN_APP = 16
#: As how many of them one with a large body counts.
_LARGE_WEIGHT = _MOST_OF_AN_APP // 2
#: Size of a burst, in seconds of the rate: for notes that were written offline.
_BURST_SECONDS = 10
#: More digits than any length has.
_LENGTH_DIGITS = 15
#: A Host header.
_HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", re.IGNORECASE)
#: The code of a WebSocket that is refused (RFC 6455, 7.4.1).
_POLICY_VIOLATION = 1008


def _scopes(route: Any) -> frozenset[Scope]:
    """The scopes that allow a route, by what stands beside it; none where it needs no token."""
    if not hasattr(route, "openapi_extra"):  # /openapi.json, which every token may read
        return frozenset(Scope)
    security = (route.openapi_extra or {}).get("security", [{"token": [Scope.ADMIN]}])
    return frozenset(scope for one in security for scope in one["token"])


class Rate:
    """A token bucket for each caller."""

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._per_second, self._clock = per_second, clock
        self._burst = max(1.0, per_second * _BURST_SECONDS)
        self._left: dict[str, tuple[float, float]] = {}  #: name -> requests left, and the time

    def wait_seconds(self, name: str) -> float:
        """Count a request; returns 0 if it is allowed, else the seconds until the next one is."""
        now = self._clock()
        left, before = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - before) * self._per_second)  # the clock may have been set back
        if left < 1:
            self._left[name] = left, now
            return (1 - left) / self._per_second
        self._left[name] = left - 1, now
        return 0.0


class Guard:
    """ASGI middleware that passes a request on, or answers with an error."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[BaseRoute],
        credentials: Credentials,
        rate: Rate,
        max_body_bytes: int,
        max_requests: int,
        open_routes: bool,
        origins: re.Pattern[str],
    ) -> None:
        """rate: per app. max_requests: concurrent ones of all apps. open_routes: whether OPEN_ROUTE needs no token.
        origins: beside this device's own, from which requests may come.
        """
        self._app, self._credentials, self._rate = app, credentials, rate
        self._routes = [(route, _scopes(route)) for route in iter_route_contexts(routes)]
        self._max_body_bytes, self._max_requests, self._open_routes = max_body_bytes, max_requests, open_routes
        self._origins = origins
        self._running: Counter[str] = Counter()  #: by caller

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Handle one request. Nothing is spent on a caller, and no body read, before it is known who calls."""
        if connection["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if connection["type"] != "http":
            await self._app(connection, receive, send)
            return
        request, scopes = HTTPConnection(connection), self._scopes(connection)
        try:
            _check_origin(request, self._origins, has_no_content=scopes == frozenset())
            caller = self._admitted(request, scopes) if scopes else None
        except (Problem, TooLarge) as error:
            await problem_of(error).response()(connection, receive, send)
            return
        if not scopes:  # the answer costs next to nothing and is everybody's, also 404 and 405
            await self._app(connection, receive, _not_stored(send))
            return
        name = caller.name if caller else _ANONYMOUS
        known = {"scopes": caller.scopes, "token": caller.token} if caller else {"scopes": frozenset()}
        connection.setdefault("state", {}).update(caller=name, **known)
        weight = _weight(request.headers)
        self._running[name] += weight
        try:
            await self._app(connection, receive, _not_stored(send))
        finally:
            self._running[name] -= weight
            if not self._running[name]:
                del self._running[name]

    def _scopes(self, connection: Connection) -> frozenset[Scope] | None:
        """The scopes that allow a request's route: none if it needs no token. None where there is no route."""
        return next((scopes for route, scopes in self._routes if route.matches(connection)[0] is Match.FULL), None)

    def _admitted(self, request: HTTPConnection, scopes: frozenset[Scope]) -> Caller | None:
        """Who sends a request that may be answered; None without a token. Raises Problem for one that may not."""
        credential = credential_of(request)
        caller = None if credential is None else self._credentials.caller(credential)
        if credential is not None and caller is None:
            detail = (
                "The access token, code or session is invalid or has expired. `pocketllm token` prints the owner's "
                "token; `pocketllm dashboard` signs a browser in."
            )
            raise Problem(HTTPStatus.UNAUTHORIZED, detail, code="bad_token")
        if not (self._open_routes and (request.scope["method"], request.scope["path"]) == OPEN_ROUTE):
            _check_scope(caller, scopes)
        name = caller.name if caller else _ANONYMOUS
        self._check_load(name, request.headers)
        if name != OWNER and (wait := self._rate.wait_seconds(name)) > 0:
            who = "Callers without a token send" if name == _ANONYMOUS else f"The app {name!r} sends"
            detail = f"{who} too many requests (setting app_requests_per_second)."
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, detail, code="too_often", retry_seconds=math.ceil(wait))
        return caller

    def _check_load(self, name: str, headers: Headers) -> None:
        # A body of unknown length is counted while it is read (app.py).
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > _LENGTH_DIGITS or int(length) > self._max_body_bytes):
            raise TooLarge
        if name == OWNER:
            return
        of_apps = sum(count for other, count in self._running.items() if other != OWNER)
        if of_apps >= self._max_requests:
            at_most = f"{self._max_requests} of all apps (setting max_requests)"
        elif self._running[name] + _weight(headers) > _MOST_OF_AN_APP:
            at_most = f"{_MOST_OF_AN_APP} of an app, of which each large one counts as {_LARGE_WEIGHT}"
        else:
            return
        detail = f"Too many requests at once: at most {at_most}. Try again in a second."
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, code="busy", retry_seconds=1)


def _check_scope(caller: Caller | None, scopes: frozenset[Scope]) -> None:
    """Refuse a caller without a token, or without one of these scopes. Raises Problem."""
    if caller is None:
        detail = (
            'An access token is required: send "Authorization: Bearer TOKEN"; `pocketllm token` prints it. '
            "`pocketllm dashboard` signs a browser in."
        )
        raise Problem(HTTPStatus.UNAUTHORIZED, detail, code="missing_token")
    if not caller.scopes & scopes:
        has, least = " and ".join(sorted(caller.scopes)), min(scopes, key=list(Scope).index)
        detail = (
            f"The access token {caller.name!r} has the scope {has}; this route requires {least}. "
            f"`pocketllm token create NAME --scope {least}` creates one."
        )
        raise Problem(HTTPStatus.FORBIDDEN, detail, code="out_of_scope")


def _weight(headers: Headers) -> int:
    """As how many requests this one counts: of large bodies, which are held whole, an app sends two at once."""
    length = headers.get("content-length", "0")  # _check_load has seen it
    is_large = "transfer-encoding" in headers or (length.isdecimal() and int(length) > LARGE_BYTES)
    return _LARGE_WEIGHT if is_large else 1


def _not_stored(send: Send) -> Send:
    """Send answers that no cache keeps, but for those that say otherwise themselves."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message["headers"]).setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def pattern_of(origins: Iterable[str]) -> re.Pattern[str]:
    """What matches these origins: of one that ends with ://, any host."""
    parts = (re.escape(origin) + ("[^/]*" if origin.endswith("://") else "") for origin in origins)
    return re.compile("|".join(parts) or "(?!)")


def _check_origin(request: HTTPConnection, origins: re.Pattern[str], *, has_no_content: bool) -> None:
    """Refuse a foreign Host (DNS rebinding) or Origin, and other websites but for links to the page. Raises Problem."""
    headers = request.headers
    host = headers.get("host", "")
    if not is_local(host):
        detail = f"Host {host[:80]!r} is not local. Use http://127.0.0.1."
        raise Problem(HTTPStatus.FORBIDDEN, detail, code="foreign_host")
    origin = headers.get("origin")
    if origin is not None and origins.fullmatch(origin):
        return
    scheme, _, host = (origin or "").lower().partition("://")
    if origin is not None and not (scheme in ("http", "https") and is_local(host)):
        detail = f"Requests from {origin[:80]!r} are not allowed; the setting allowed_origins names those that are."
        raise Problem(HTTPStatus.FORBIDDEN, detail, code="foreign_origin")
    if headers.get("sec-fetch-site", "").lower() != "cross-site":
        return
    # The file by which `pocketllm dashboard` signs in is another website, too.
    is_link = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest", "document")) == ("navigate", "document")
    if not (is_link and has_no_content):
        raise Problem(HTTPStatus.FORBIDDEN, "Requests from other websites are not allowed.", code="cross_site")


def is_local(host: str) -> bool:
    """Whether host[:port] is this device: localhost in any case, also with the root's dot, or a loopback address."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["name"].lower().strip("[]")
    if name in ("localhost", "localhost."):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None
