"""What the repositories share: queries of one statement, rows by their ids, pages, and long lists."""

import json
from collections.abc import Collection
from typing import TypeVar

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, UpdateBase, func, literal, tuple_
from sqlalchemy import select as sql_select
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from pocketllm.storage.database import Database
from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories.quotas import Quota
from pocketllm.storage.tables import Adapter, Deletion, Job, Preference, Text, UploadedFile

Result = TypeVar("Result")
Row = TypeVar("Row", Adapter, Deletion, Job, Text, UploadedFile)
Listed = TypeVar("Listed", Job, Text)

#: Fewer characters behind its dash do not abbreviate an id.
_SHORTEST = 4
#: The key of the preference that is the name of the model in use.
MODEL = "model"
_MISSING: dict[type[object], str] = {
    Adapter: "There is no adapter {!r}. GET /adapters lists all adapters.",
    Deletion: "There is no deletion {!r}.",
    Job: "There is no job {!r}. GET /jobs lists all jobs.",
    Text: "There is no text {!r}. GET /texts lists all texts.",
    UploadedFile: "There is no file {!r}. GET /v1/files lists all files.",
}


class Repository:
    """Queries about one kind of row."""

    def __init__(self, database: Database, quota: Quota | None = None) -> None:
        self._database, self._quota = database, quota

    def _all(self, statement: SelectOfScalar[Result]) -> list[Result]:
        with self._database.read() as session:
            return list(session.exec(statement))

    def _write(self, *statements: UpdateBase) -> None:
        with self._database.write() as session:
            for statement in statements:
                session.exec(statement)


def found(session: Session, table: type[Row], identity: str, *, abbreviated: bool = False) -> Row:
    """The row with this id, or, if it may be abbreviated, the only one whose id begins like this. Raises NotFound."""
    row = session.get(table, identity)
    if row is None and abbreviated and len(identity.partition("-")[2]) >= _SHORTEST:
        beginning = col(table.id).between(identity, f"{identity}\U0010ffff")
        rows = session.exec(select(table).where(beginning).limit(2)).all()
        if len(rows) > 1:
            ids = f"{rows[0].id}, {rows[1].id}"
            raise NotFound(f"More than one id begins with {identity!r}: {ids}. Give more characters.")
        row = rows[0] if rows else None
    if row is None:
        raise NotFound(missing(table, identity))
    return row


def missing(table: type[Row], identity: str) -> str:
    """What is said when there is no such row."""
    return _MISSING[table].format(identity)


def page(
    session: Session, table: type[Listed], *where: ColumnElement[bool], after: str | None, limit: int
) -> list[Listed]:
    """Up to `limit` rows, newest first, after the row `after`. Raises NotFound for an unknown `after`."""
    rows = select(table).where(*where).order_by(col(table.created_at).desc(), col(table.id).desc()).limit(limit)
    if after is not None:
        last = found(session, table, after)
        older = tuple_(col(table.created_at), col(table.id)) < tuple_(literal(last.created_at), literal(last.id))
        rows = rows.where(older)
    return list(session.exec(rows))


def in_use(model: SQLColumnExpression[str]) -> ColumnElement[bool]:
    """Whether a model is the one in use; any is before `TextStore.use_model`."""
    used = select(func.json_extract(col(Preference.value), "$")).where(Preference.key == MODEL)
    return func.coalesce(used.scalar_subquery(), model) == model


def among(values: Collection[str] | Collection[int]) -> Select[str]:
    """These values, for `in_`: as one parameter, since SQLite limits their number."""
    return sql_select(func.json_each(json.dumps(list(values))).table_valued("value").c.value)
