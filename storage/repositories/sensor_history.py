"""What the sensors have seen over the last days, every few minutes."""

from datetime import datetime, timedelta

from sqlmodel import col, delete, select

from pocketllm.storage.database import Database
from pocketllm.storage.tables import Sample

KEPT_FOR = timedelta(days=2)


class SampleStore:
    """Every query about samples."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, sample: Sample) -> None:
        """Note one, and drop those that are too old, or from a future that a clock was set back from."""
        with self._database.write() as session:
            outside = (col(Sample.at) <= sample.at - KEPT_FOR) | (col(Sample.at) >= sample.at)
            session.exec(delete(Sample).where(outside))
            session.add(sample)

    def since(self, start: datetime) -> list[Sample]:
        """Those behind a time, oldest first."""
        with self._database.read() as session:
            return list(session.exec(select(Sample).where(col(Sample.at) > start).order_by(col(Sample.at))))
