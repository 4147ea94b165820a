"""Tokens: the owner's, in a file that only the owner can read, and apps' own, of which only digests are kept."""

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pocketllm.daemon.errors import DaemonError
from pocketllm.storage.errors import AlreadyThere
from pocketllm.storage.repositories.tokens import TokenStore
from pocketllm.storage.tables import AppToken

OWNER = "owner"
#: No app can have this name: it holds a space.
_BROWSER = "the dashboard"
#: So that a token that lies about somewhere is known for what it is.
_PREFIX = "pllm_"


class Scope(StrEnum):
    """What a token lets its bearer do."""

    INGEST = "ingest"  #: hand over text, and tell of the screen; read nothing
    GENERATE = "generate"  #: ask the model, which may repeat what others have handed over
    ADMIN = "admin"  #: everything


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    name: str
    scopes: frozenset[Scope]

    @property
    def is_owner(self) -> bool:
        """Whether the owner's own token was sent, or that of a browser which the owner has signed in."""
        return self.name in (OWNER, _BROWSER)


class Credentials:
    """All tokens that are good. Safe to share between threads."""

    def __init__(self, owner_token: str, store: TokenStore) -> None:
        self._store, self._changing = store, threading.Lock()
        self._sessions: dict[str, Caller] = {}
        self._owner = (_digest(owner_token), Caller(OWNER, frozenset({Scope.ADMIN})))
        self._callers = self._load()

    def caller(self, token: str) -> Caller | None:
        """Whose token this is; None for one that is not good.

        What is compared are digests, whose bytes nobody chooses: how long that takes tells nothing of a token.
        """
        return self._callers.get(_digest(token))

    def create(self, name: str, scopes: Iterable[Scope], now: datetime) -> str:
        """A token for an app; it is told this once. Raises AlreadyThere."""
        if name == OWNER:
            raise AlreadyThere("The owner has a token; `pocketllm token` prints it.")
        token = _PREFIX + secrets.token_urlsafe(32)
        with self._changing:
            # 256 random bits need no salt, and no slow hash: there is nothing to guess.
            self._store.create(name, digest=_digest(token), scopes=sorted(scopes), now=now)
            self._callers = self._load()
        return token

    def session(self) -> str:
        """A token for a browser of the owner's. It is kept nowhere, and good as long as this daemon runs."""
        token = _PREFIX + secrets.token_urlsafe(32)
        with self._changing:
            self._sessions[_digest(token)] = Caller(_BROWSER, frozenset({Scope.ADMIN}))
            self._callers = self._load()
        return token

    def revoke(self, name: str) -> None:
        """Let an app in no more, from the next request on. Raises NotFound."""
        with self._changing:
            self._store.delete(name)
            self._callers = self._load()

    def all(self) -> list[AppToken]:
        """The apps that are let in, by name."""
        return self._store.all()

    def _load(self) -> dict[str, Caller]:
        apps = {
            token.digest: Caller(token.name, frozenset(Scope(scope) for scope in token.scopes))
            for token in self._store.all()
        }
        return {self._owner[0]: self._owner[1], **self._sessions, **apps}


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


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
