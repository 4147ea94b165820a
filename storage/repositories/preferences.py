"""What the owner has said and that outlives the daemon: so far, until when nothing shall run."""

from datetime import datetime

from pocketllm.storage.database import Database
from pocketllm.storage.tables import OwnersWord

_SNOOZED_UNTIL = "snoozed until"


class OwnersWords:
    """Each word has a name and is said anew in place of the old one. Only the daemon, which has one, writes them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: What is stored, once it was read: it is asked for at each look at the conditions.
        self._known: dict[str, str | None] = {}

    def snooze(self, until: datetime | None) -> None:
        """Let nothing run until then; None takes it back."""
        value = None if until is None else until.isoformat()
        with self._database.write() as session:
            session.merge(OwnersWord(name=_SNOOZED_UNTIL, value=value))
        self._known[_SNOOZED_UNTIL] = value

    def snoozed_until(self) -> datetime | None:
        """Until when nothing shall run; it may be over."""
        if _SNOOZED_UNTIL not in self._known:
            with self._database.read() as session:
                word = session.get(OwnersWord, _SNOOZED_UNTIL)
            self._known[_SNOOZED_UNTIL] = word.value if word else None
        value = self._known[_SNOOZED_UNTIL]
        return None if value is None else datetime.fromisoformat(value)
