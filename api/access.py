"""Who gets in: loopback names only, no foreign web pages, and a token for all but three content-free routes.

On a phone every app reaches 127.0.0.1, so the token is the boundary. Everything is refused that is not named open.
"""

import json
import os
import re
import secrets
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketllm.api.problems import TOO_LARGE, code_for, problem_response
from pocketllm.daemon.errors import DaemonError

#: GET routes that hold no content: `curl localhost:2407/jobs` just works.
OPEN_ROUTES = re.compile(r"/(health|status|ledger|jobs|jobs/[^/]+)")

#: Names by which a local program may call us. Anything else is a web page that rebound its own name to us.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

OWNER = "owner"


def load_or_create_token(path: Path) -> str:
    """The owner's token: read, or made at first start, in a file that only the owner can read.

    Raises DaemonError for a file without a usable token: it is never taken for an absent one.
    """
    try:
        token = json.loads(path.read_text())[OWNER]
        if not (isinstance(token, str) and token):
            raise ValueError(f"{OWNER} is not a token")
        path.chmod(0o600)
    except FileNotFoundError:
        return _create_token(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"The tokens in {path} cannot be used ({type(error).__name__}: {error}). Delete it to get new ones."
        raise DaemonError(message) from error
    return token


def _create_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)  # 256 bits
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({OWNER: token}, file)
        file.flush()
        os.fsync(descriptor)
    scratch.rename(path)
    return token


class Guard:
    """ASGI middleware that lets in or answers with an error."""

    def __init__(self, app: ASGIApp, token: str, max_body_bytes: int) -> None:
        self._app, self._token, self._max_body_bytes = app, token.encode(), max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] == "http":
            refusal = self._refusal(Headers(scope=scope), scope["method"], scope["path"])
            if refusal is not None:
                status, detail, code = refusal
                await problem_response(status, detail, code=code)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, method: str, path: str) -> tuple[HTTPStatus, str, str] | None:
        """Why this request is refused; None lets it in."""
        host = headers.get("host", "")
        if _hostname(f"//{host}") not in LOCAL_NAMES:
            return HTTPStatus.FORBIDDEN, f"Host {host[:80]!r} is not local. Use http://127.0.0.1.", "foreign_host"
        origin = headers.get("origin")
        if origin is not None and _hostname(origin) not in LOCAL_NAMES:
            return HTTPStatus.FORBIDDEN, f"Web pages from {origin[:80]!r} are not let in.", "foreign_origin"
        if headers.get("sec-fetch-site") == "cross-site":
            return HTTPStatus.FORBIDDEN, "Requests from other web sites are not let in.", "cross_site"
        # Bodies of unknown length are counted as they come (see app.py); one that says its length is not even read.
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            return status, TOO_LARGE, code_for(status)
        if method in ("GET", "HEAD") and OPEN_ROUTES.fullmatch(path):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            detail = 'This needs a token: send "Authorization: Bearer TOKEN"; `pocketllm token` prints it.'
            return HTTPStatus.UNAUTHORIZED, detail, "missing_token"
        if not secrets.compare_digest(given.strip().encode(), self._token):
            return HTTPStatus.UNAUTHORIZED, "The token is wrong; `pocketllm token` prints the right one.", "bad_token"
        return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
