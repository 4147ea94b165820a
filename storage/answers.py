"""Answers that are kept for a day, for requests that are sent again because the first answer was lost."""

from datetime import datetime, timedelta

from sqlmodel import col, delete

from pocketllm.storage.database import Database
from pocketllm.storage.tables import KeptAnswer

KEPT_FOR = timedelta(days=1)


class AnswerStore:
    """Every query about kept answers. They hold ids and numbers, never user text."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, key: str, now: datetime) -> KeptAnswer | None:
        """What was answered under this key; None after a day."""
        with self._database.read() as session:
            found = session.get(KeptAnswer, key)
        return found if found is not None and now - found.at < KEPT_FOR else None

    def keep(self, answer: KeptAnswer) -> None:
        """Keep an answer, and drop those that are too old."""
        with self._database.write() as session:
            session.exec(delete(KeptAnswer).where(col(KeptAnswer.at) <= answer.at - KEPT_FOR))
            session.merge(answer)
