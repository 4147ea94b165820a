"""Access tokens: the owner's, in a file that only the owner can read, and apps', of which digests are stored."""

import hashlib
import json
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pocketllm.daemon.errors import DaemonError
from pocketllm.daemon.paths import write_private
from pocketllm.storage.errors import WrongState

if TYPE_CHECKING:  # the command line reads the scopes here, without a database
    from pocketllm.api.security.sessions import Sessions
    from pocketllm.storage.repositories.tokens import TokenStore
    from pocketllm.storage.tables import AppToken

OWNER = "owner"  #: as storage.tables.PERSON
#: Identifies our tokens, for secret scanners.
_PREFIX = "pllm_"


class Scope(StrEnum):
    """The permissions of an access token."""

    INGEST = "ingest"  #: add texts and report the screen; read nothing
    GENERATE = "generate"  #: use the model, which may repeat texts of other apps
    RECALL = "recall"  #: search all texts, and read what is found
    TRAIN = "train"  #: upload files, and run fine-tuning jobs on them; see no others
    MONITOR = "monitor"  #: see jobs with their settings and errors, readings and nights; no texts
    ADMIN = "admin"  #: everything


@dataclass(frozen=True)
class Caller:
    """The sender of a request."""

    name: str
    scopes: frozenset[Scope]
    token: str  #: digest of the caller's token, or of the one that signed the browser in


class Credentials:
    """All valid tokens, and the sessions of browsers that they have signed in. Thread-safe."""

    def __init__(self, owner_token: str, store: "TokenStore", sessions: "Sessions") -> None:
        self._store, self._sessions, self._changing = store, sessions, threading.Lock()
        owner = digest_of(owner_token)
        self._owner = {owner: Caller(OWNER, frozenset({Scope.ADMIN}), owner)}
        self._callers = self._load()

    def caller(self, credential: str) -> Caller | None:
        """The caller with this token, session or code; None if it is not valid, or no longer.

        Compares digests, so that the time reveals nothing about a token.
        """
        digest = digest_of(credential)
        return self._callers.get(self._sessions.token(digest) or digest)

    def create(self, name: str, scopes: Iterable[Scope], now: datetime) -> str:
        """Create a token for an app; it is stored nowhere. Raises WrongState."""
        if name == OWNER:
            raise WrongState(f"The name {OWNER!r} is that of your own token; `pocketllm token` prints it.")
        token = _PREFIX + secrets.token_urlsafe(32)
        with self._changing:
            self._store.create(name, digest=digest_of(token), scopes=sorted(scopes), now=now)
            self._callers = self._load()
        return token

    def revoke(self, name: str) -> None:
        """Revoke an app's token, and with it the sessions that it has begun. Raises NotFound."""
        with self._changing:
            self._store.delete(name)
            self._callers = self._load()

    def all(self) -> "list[AppToken]":
        """The apps with tokens, by name."""
        return self._store.all()

    def _load(self) -> dict[str, Caller]:
        apps = {
            token.digest: Caller(token.name, frozenset(Scope(scope) for scope in token.scopes), token.digest)
            for token in self._store.all()
        }
        return self._owner | apps


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
        message = f"{path} cannot be used ({type(error).__name__}: {error}). Delete it to get a new access token."
        raise DaemonError(message) from error
    return token


def _create_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)  # 256 bits
    write_private(path, json.dumps({OWNER: token}).encode())
    return token


def digest_of(token: str) -> str:
    """The hexadecimal SHA-256 of a token: 256 random bits need neither a salt nor a slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
