"""Notes what the sensors see every few minutes, for the plots of the last day."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pocketllm.daemon.conditions.readings import Reading
from pocketllm.storage.repositories.sensor_history import SensorHistoryStore
from pocketllm.storage.tables import SensorSample

EVERY = timedelta(minutes=5)
_NAMES = ("battery", "temperature", "heat", "memory")


class History:
    """Called at every look at the sensors; writes at some."""

    def __init__(self, store: SensorHistoryStore) -> None:
        self._store = store
        self._noted_at: datetime | None = None

    def note(self, readings: Sequence[Reading], now: datetime) -> None:
        """Note the readings if it is time. A clock that was set back is no reason to wait for it."""
        if self._noted_at is not None and timedelta(0) <= now - self._noted_at < EVERY:
            return
        values = {
            reading.name: float(reading.value)
            for reading in readings
            if reading.name in _NAMES and isinstance(reading.value, int | float)
        }
        if values:
            self._store.add(SensorSample(at=now, **values))
            self._noted_at = now
