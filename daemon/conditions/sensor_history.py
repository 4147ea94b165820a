"""Stores readings every few minutes, for the plots of the last day."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pocketllm.daemon.conditions.readings import Reading
from pocketllm.storage.repositories.sensor_history import SensorHistoryStore
from pocketllm.storage.tables import SensorSample

EVERY = timedelta(minutes=5)
_NAMES = ("battery", "temperature", "heat", "memory")


class History:
    """Called with all readings; stores some."""

    def __init__(self, store: SensorHistoryStore) -> None:
        self._store = store
        self._stored_at: datetime | None = None

    def add(self, readings: Sequence[Reading], now: datetime) -> None:
        """Store the readings if it is time, also after the clock was set back."""
        if self._stored_at is not None and timedelta(0) <= now - self._stored_at < EVERY:
            return
        values = {
            reading.name: float(reading.value)
            for reading in readings
            if reading.name in _NAMES and isinstance(reading.value, int | float)
        }
        if values:
            self._store.add(SensorSample(at=now, **values))
            self._stored_at = now
