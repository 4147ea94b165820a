"""What the sensors have seen over the last days, every few minutes."""

from datetime import datetime, timedelta

from sqlmodel import col, delete, select

from pocketllm.storage.database import Database
from pocketllm.storage.tables import SensorSample

KEPT_FOR = timedelta(days=2)


class SensorHistoryStore:
    """Every query about samples."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, sample: SensorSample) -> None:
        """Note one, and drop those that are too old, or from a future that a clock was set back from."""
        with self._database.write() as session:
            outside = (col(SensorSample.at) <= sample.at - KEPT_FOR) | (col(SensorSample.at) >= sample.at)
            session.exec(delete(SensorSample).where(outside))
            session.add(sample)

    def since(self, start: datetime) -> list[SensorSample]:
        """Those behind a time, oldest first."""
        with self._database.read() as session:
            return list(
                session.exec(select(SensorSample).where(col(SensorSample.at) > start).order_by(col(SensorSample.at)))
            )
