"""Apps' tokens: who may call, as a digest of what they send, and what they may do."""

from collections.abc import Sequence
from datetime import datetime

from sqlmodel import col, delete, select

from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.repositories.base import Repository
from pocketllm.storage.tables import AppToken


class TokenStore(Repository):
    """Every query about tokens. The tokens themselves are stored nowhere."""

    def create(self, name: str, *, digest: str, scopes: Sequence[str], now: datetime) -> None:
        """Let an app in. Raises WrongState for a name that is in use."""
        with self._database.write() as session:
            if session.get(AppToken, name) is not None:
                raise WrongState(f"There is already a token {name!r}; `pocketllm token revoke {name}` revokes it.")
            session.add(AppToken(name=name, digest=digest, scopes=list(scopes), created_at=now))

    def all(self) -> list[AppToken]:
        """All of them, by name."""
        return self._all(select(AppToken).order_by(col(AppToken.name)))

    def delete(self, name: str) -> None:
        """Let an app in no more. Raises NotFound."""
        with self._database.write() as session:
            if session.exec(delete(AppToken).where(col(AppToken.name) == name)).rowcount == 0:
                raise NotFound(f"There is no token {name!r}. `pocketllm token list` lists all tokens.")
