"""Which adapters there are, and which one is served. Their files belong to the daemon."""

from sqlmodel import col, select

from pocketllm.storage.database import Database
from pocketllm.storage.errors import NotFound
from pocketllm.storage.tables import Adapter


class AdapterStore:
    """Every query about adapters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, adapter_id: str) -> Adapter:
        """The adapter with this id. Raises NotFound."""
        with self._database.read() as session:
            adapter = session.get(Adapter, adapter_id)
        if adapter is None:
            raise NotFound(f"There is no adapter {adapter_id!r}. GET /adapters lists those that are here.")
        return adapter

    def all(self) -> list[Adapter]:
        """All adapters, newest first."""
        with self._database.read() as session:
            return list(session.exec(select(Adapter).order_by(col(Adapter.created_at).desc())))

    def serving(self, model: str) -> Adapter | None:
        """The adapter that is served for a model; None while nothing was learned."""
        with self._database.read() as session:
            return session.exec(select(Adapter).where(Adapter.model == model, col(Adapter.serving))).first()
