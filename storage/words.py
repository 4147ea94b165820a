"""What the owner has said and that outlives the daemon: so far, until when nothing shall run."""

from datetime import datetime

from pocketllm.storage.database import Database
from pocketllm.storage.tables import OwnersWord

_SNOOZED_UNTIL = "snoozed until"


class OwnersWords:
    """Each word has a name and is said anew in place of the old one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def snooze(self, until: datetime | None) -> None:
        """Let nothing run until then; None takes it back."""
        with self._database.write() as session:
            session.merge(OwnersWord(name=_SNOOZED_UNTIL, value=None if until is None else until.isoformat()))

    def snoozed_until(self) -> datetime | None:
        """Until when nothing shall run; it may be over."""
        with self._database.read() as session:
            word = session.get(OwnersWord, _SNOOZED_UNTIL)
            return None if word is None or word.value is None else datetime.fromisoformat(word.value)
