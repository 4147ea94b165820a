"""Ids as people type them: the beginning of one is enough where no other begins like it."""

from sqlmodel import Session, col, select

from pocketllm.storage.errors import NotFound
from pocketllm.storage.tables import Adapter, Job, Text

#: Fewer characters are no id.
_SHORTEST = 4


def full_id(session: Session, table: type[Adapter | Job | Text], given: str) -> str:
    """The only id of this table that begins like this; `given` where none does. Raises NotFound where several do."""
    if len(given) < _SHORTEST or session.get(table, given) is not None:
        return given
    beginning = col(table.id).between(given, f"{given}\U0010ffff")
    found = session.exec(select(table.id).where(beginning).limit(2)).all()
    if len(found) > 1:
        raise NotFound(f"More than one id begins with {given!r}: {found[0]}, {found[1]}. Give more characters.")
    return found[0] if found else given
