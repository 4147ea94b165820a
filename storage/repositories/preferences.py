"""The owner's preferences that outlive the daemon: until when no job runs. `TextStore.use_model` stores the model."""

from datetime import datetime

from pocketllm.storage.repositories.base import Repository
from pocketllm.storage.tables import Preference

_SNOOZED_UNTIL = "snoozed_until"


class PreferenceStore(Repository):
    """Preferences by key. Only the daemon writes them, and there is one."""

    _cached: str | None = None  #: read at every look at the conditions; None: not yet read

    def snooze(self, until: datetime | None, now: datetime) -> None:
        """Run no job until then; None ends that. Stored is the interval from now on, as ISO 8601 writes it."""
        value = None if until is None else f"{now.isoformat()}/{until.isoformat()}"
        with self._database.write() as session:
            session.merge(Preference(key=_SNOOZED_UNTIL, value=value))
        self._cached = value or ""

    def snoozed_until(self, now: datetime) -> datetime | None:
        """Until when no job runs; may be over. One that was set in the future, by a wrong clock, is none."""
        if self._cached is None:
            with self._database.read() as session:
                found = session.get(Preference, _SNOOZED_UNTIL)
            self._cached = (found and found.value) or ""
        since, _, until = self._cached.rpartition("/")  # older versions stored the end alone
        if not until or (since and datetime.fromisoformat(since) > now):
            return None
        return datetime.fromisoformat(until)
