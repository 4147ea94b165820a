"""The owner's preferences that outlive the daemon: so far, until when no job runs."""

from datetime import datetime

from pocketllm.storage.database import Database
from pocketllm.storage.tables import Preference

_SNOOZED_UNTIL = "snoozed_until"


class PreferenceStore:
    """Preferences by key. Only the daemon writes them, and there is one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[str, str | None] = {}  # read at every look at the conditions

    def snooze(self, until: datetime | None) -> None:
        """Run no job until then; None ends that."""
        value = None if until is None else until.isoformat()
        with self._database.write() as session:
            session.merge(Preference(key=_SNOOZED_UNTIL, value=value))
        self._cache[_SNOOZED_UNTIL] = value

    def snoozed_until(self) -> datetime | None:
        """Until when no job runs; may be in the past."""
        if _SNOOZED_UNTIL not in self._cache:
            with self._database.read() as session:
                found = session.get(Preference, _SNOOZED_UNTIL)
            self._cache[_SNOOZED_UNTIL] = found.value if found else None
        value = self._cache[_SNOOZED_UNTIL]
        return None if value is None else datetime.fromisoformat(value)
