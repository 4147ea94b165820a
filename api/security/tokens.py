"""Access tokens: the owner's, in a file that only the owner can read, and apps', of which digests are stored."""

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pocketllm.daemon.errors import DaemonError
from pocketllm.storage.errors import AlreadyThere
from pocketllm.storage.repositories.tokens import TokenStore
from pocketllm.storage.tables import AppToken

OWNER = "owner"
#: An app's name cannot contain a space.
_BROWSER = "the dashboard"
#: The callers that are the owner.
OWNERS = (OWNER, _BROWSER)
#: Identifies our tokens, for secret scanners.
_PREFIX = "pllm_"


class Scope(StrEnum):
    """The permissions of a token."""

    INGEST = "ingest"  #: add texts and report the screen; read nothing
    GENERATE = "generate"  #: use the model, which may repeat texts of other apps
    MONITOR = "monitor"  #: see jobs with their settings and errors, readings and metrics; no texts
    ADMIN = "admin"  #: everything


@dataclass(frozen=True)
class Caller:
    """The sender of a request."""

    name: str
    scopes: frozenset[Scope]

    @property
    def is_owner(self) -> bool:
        """Whether this is the owner, or a browser that the owner has signed in."""
        return self.name in OWNERS


_SIGNED_IN = Caller(_BROWSER, frozenset({Scope.ADMIN}))
#: How long a browser stays signed in.
SESSION = timedelta(days=30)


class Credentials:
    """All valid tokens. Thread-safe."""

    def __init__(self, owner_token: str, store: TokenStore, now: Callable[[], datetime]) -> None:
        self._store, self._now, self._changing = store, now, threading.Lock()
        self._sessions: dict[str, datetime] = {}  #: digest -> until when
        self._owner = (_digest(owner_token), Caller(OWNER, frozenset({Scope.ADMIN})))
        self._callers = self._load()

    def caller(self, token: str) -> Caller | None:
        """The caller with this token; None if it is not valid.

        Compares digests, so that the time reveals nothing about a token.
        """
        digest = _digest(token)
        if (until := self._sessions.get(digest)) is not None:
            return _SIGNED_IN if self._now() < until else None
        return self._callers.get(digest)

    def create(self, name: str, scopes: Iterable[Scope], now: datetime) -> str:
        """Create a token for an app; it is stored nowhere. Raises AlreadyThere."""
        if name == OWNER:
            raise AlreadyThere("The owner has a token; `pocketllm token` prints it.")
        token = _PREFIX + secrets.token_urlsafe(32)
        with self._changing:
            # 256 random bits need neither a salt nor a slow hash.
            self._store.create(name, digest=_digest(token), scopes=sorted(scopes), now=now)
            self._callers = self._load()
        return token

    def session(self) -> str:
        """A token for the owner's browser, valid for SESSION, until it is ended, or the daemon stops."""
        token, now = _PREFIX + secrets.token_urlsafe(32), self._now()
        with self._changing:
            valid = {digest: until for digest, until in self._sessions.items() if now < until}
            self._sessions = valid | {_digest(token): now + SESSION}
        return token

    def end_session(self, token: str) -> None:
        """Revoke a browser's token, if it is one."""
        with self._changing:
            self._sessions = {digest: until for digest, until in self._sessions.items() if digest != _digest(token)}

    def revoke(self, name: str) -> None:
        """Revoke an app's token. Raises NotFound."""
        with self._changing:
            self._store.delete(name)
            self._callers = self._load()

    def all(self) -> list[AppToken]:
        """The apps with tokens, by name."""
        return self._store.all()

    def _load(self) -> dict[str, Caller]:
        apps = {
            token.digest: Caller(token.name, frozenset(Scope(scope) for scope in token.scopes))
            for token in self._store.all()
        }
        return {self._owner[0]: self._owner[1], **apps}


def load_or_create_token(path: Path) -> str:
    """The owner's token, from its file, which the first start creates.

    Raises DaemonError for a file without a valid token.
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


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
