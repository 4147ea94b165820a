"""Browsers that are signed in: one-time codes and sessions, each of which ends with the token that it was begun with.

A browser sends a cookie to every port of the device's name, so that another app's server can get it. Therefore a
session is two halves: the cookie, which no script can read, and a page key, which only pages from our port can. The
digest of both is stored.
"""

import secrets
import threading
from base64 import b64decode
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, TypeAdapter
from starlette.requests import HTTPConnection

from pocketllm.api.security.tokens import digest_of
from pocketllm.daemon.paths import write_private

#: How long a code is good, and a session.
CODE, SESSION = timedelta(minutes=2), timedelta(days=7)
_SESSIONS = TypeAdapter(dict[str, tuple[str, AwareDatetime]])


class Sessions:
    """Sessions, in a file that only the owner can read, and codes, in memory. Thread-safe."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._path, self._now, self._lock = path, now, threading.Lock()
        # Digest of the code or session -> digest of the token, and until when it is good.
        self._codes: dict[str, tuple[str, datetime]] = {}
        self._sessions = _stored(path)

    def token(self, digest: str) -> str | None:
        """The digest of the token that a session or code stands for; None if it is none. A code is good once."""
        token, until = self._codes.pop(digest, None) or self._sessions.get(digest) or (None, self._now())
        return token if self._now() < until else None

    def code(self, token: str) -> str:
        """A code that signs a browser in."""
        code, now = secrets.token_urlsafe(32), self._now()
        for digest, (_, until) in list(self._codes.items()):
            if until <= now:
                self._codes.pop(digest, None)
        self._codes[digest_of(code)] = token, now + CODE
        return code

    def begin(self, token: str) -> tuple[str, str]:
        """A new session: its cookie, and its page key. Raises OSError."""
        cookie, page_key, now = secrets.token_urlsafe(32), secrets.token_urlsafe(32), self._now()
        with self._lock:
            valid = {digest: entry for digest, entry in self._sessions.items() if now < entry[1]}
            self._store(valid | {digest_of(cookie + page_key): (token, now + SESSION)})
        return cookie, page_key

    def end(self, token: str) -> None:
        """End all sessions of a token. Raises OSError."""
        with self._lock:
            self._store({digest: entry for digest, entry in self._sessions.items() if entry[0] != token})

    def _store(self, sessions: dict[str, tuple[str, datetime]]) -> None:
        write_private(self._path, _SESSIONS.dump_json(sessions))
        self._sessions = sessions


def _stored(path: Path) -> dict[str, tuple[str, datetime]]:
    try:
        return _SESSIONS.validate_json(path.read_bytes())
    except (OSError, ValueError):  # none yet; or damaged: browsers sign in again
        return {}


def cookie_name(connection: HTTPConnection) -> str:
    """The cookie's name, with the port: daemons on different ports share the browser's cookies."""
    return f"pocketllm-{connection.url.port or 80}"


def _password(basic: str) -> str:
    """What stands behind the colon in HTTP Basic's credentials; empty where these are none."""
    try:
        return b64decode(basic, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def credential_of(connection: HTTPConnection) -> str | None:
    """What a request is sent with: a token or code, or both halves of a session."""
    scheme, _, given = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":  # of programs that know an address alone: http://x:TOKEN@localhost:2407
        given = _password(given)
    if scheme.lower() in ("basic", "bearer") and given:
        return given.strip()
    cookie, page_key = connection.cookies.get(cookie_name(connection)), connection.headers.get("x-page-key")
    return cookie + page_key if cookie and page_key else None
