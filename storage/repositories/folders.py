"""Files of watched folders, as they were when they were last read.

A file is an owner of its texts, beside the person and the apps. So a text that is moved, or is in two files, stays.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, SQLColumnExpression, false, literal
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, delete, func, or_, select, update

from pocketllm.storage.repositories.base import Repository, among
from pocketllm.storage.repositories.deletions import delete_texts
from pocketllm.storage.repositories.texts import FILE_PATH, UNOWNED, NewText, add_texts, text_id
from pocketllm.storage.tables import (
    FILE,
    OPEN_STATES,
    DeletedText,
    Deletion,
    Job,
    JobText,
    TextOwner,
    UtcDateTime,
    WatchedFile,
)

#: Before the id of a job that is an owner. No app is called like this: a name has no colon.
_JOB = "job:"


class Known(NamedTuple):
    """The files of a folder, by their paths below it, as they were at the last scan."""

    versions: dict[str, int]
    missing: dict[str, datetime]  #: since when


class FileRead(NamedTuple):
    """A file as it is now."""

    path: str
    version: int
    ids: set[str]  #: of all its texts; none: what it had stays


#: A text of a file; None: that was all of it. Until then, what it had stays.
Read = tuple[FileRead, NewText | None]


class FolderStore(Repository):
    """Every query about watched folders."""

    def files(self, folder: str) -> Known:
        """What is known of a folder's files."""
        files = select(WatchedFile.path, WatchedFile.version, WatchedFile.missing_since)
        known = Known({}, {})
        with self._database.read() as session:
            found = files.where(_below(col(WatchedFile.path), folder)).execution_options(yield_per=1000)
            for path, version, missing_since in session.exec(found):
                name = path[len(folder.rstrip("/")) + 1 :]
                known.versions[name] = version
                if missing_since:
                    known.missing[name] = missing_since
        return known

    def files_of(self, ids: Collection[str]) -> dict[str, str]:
        """A file that has each of these texts, by the text's id."""
        of_files = select(TextOwner.text_id, FILE_PATH).where(col(TextOwner.owner).startswith(FILE))
        with self._database.read() as session:
            return dict(session.exec(of_files.where(col(TextOwner.text_id).in_(among(ids)))).all())

    def put(self, read: Sequence[Read], now: datetime, is_watched: Callable[[], bool]) -> bool:
        """Store what files have now, in place of what they had, but for what was deleted. All or nothing of it.

        is_watched: asked under the database's lock; if it says no, nothing is stored, and False returned.
        """
        whole = {file.path: file.ids for file, text in read if text is None and file.ids}
        versions = {file.path: file.version if text is None else file.version & 1 for file, text in read}
        texts = [(text, FILE + file.path) for file, text in read if text is not None]
        with self._database.write() as session:
            if not is_watched():
                return False
            _let_go(session, whole)
            owners = col(DeletedText.owner).in_(among([FILE + path for path in versions]))
            deleted = set(session.exec(select(DeletedText.text_id, DeletedText.owner).where(owners)))
            texts = [(text, owner) for text, owner in texts if (text_id(text), owner) not in deleted]
            add_texts(session, [text for text, _ in texts], [owner for _, owner in texts], now)
            rows = insert(WatchedFile).values([{"path": path, "version": one} for path, one in versions.items()])
            updated = {"version": rows.excluded.version, "missing_since": None}
            session.connection().execute(rows.on_conflict_do_update(index_elements=["path"], set_=updated))
            return True

    def drop_replaced(self, now: datetime) -> None:
        """Delete what files no longer have because they were changed. What has learned it is served on.

        An open job has what it uses of it until the job ends: an edit does not make it start again.
        """
        is_open = col(Job.state).in_(OPEN_STATES)
        in_use = select(col(JobText.text_id), _JOB + col(JobText.job_id), literal(now, UtcDateTime), 0).join(Job)
        in_use = in_use.where(is_open, col(JobText.text_id).not_in(select(TextOwner.text_id)))
        ended = col(TextOwner.owner).not_in(select(_JOB + col(Job.id)).where(is_open))
        with self._database.write() as session:
            session.exec(delete(TextOwner).where(func.substr(TextOwner.owner, 1, len(_JOB)) == _JOB, ended))
            session.exec(insert(TextOwner).from_select(["text_id", "owner", "sent_at", "bytes"], in_use))
            delete_texts(session, UNOWNED, now, withdraw=False)

    def mark(self, paths: Sequence[str], missing_since: datetime | None) -> None:
        """Note since when these files are missing; None: they are there again."""
        files = update(WatchedFile).where(col(WatchedFile.path).in_(among(paths)))
        self._write(files.values(missing_since=missing_since))

    def forget(self, paths: Sequence[str], now: datetime) -> Deletion | None:
        """Forget files, and delete the texts that no other file has. Returns the receipt, or None without a text."""
        with self._database.write() as session:
            _let_go(session, dict.fromkeys(paths, ()))
            session.exec(delete(WatchedFile).where(col(WatchedFile.path).in_(among(paths))))
            return delete_texts(session, UNOWNED, now)

    def keep_only(self, folders: Collection[str]) -> None:
        """Forget the files of folders that are watched no longer. Their texts stay."""
        watched = or_(false(), *(_below(col(WatchedFile.path), folder) for folder in folders))
        path = func.substr(col(DeletedText.owner), len(FILE) + 1)
        self._write(delete(WatchedFile).where(~watched))
        self._write(delete(DeletedText).where(path.not_in(select(WatchedFile.path))))

    def texts(self, folder: str) -> int:
        """The number of a folder's texts."""
        count = select(func.count(col(TextOwner.text_id).distinct()))
        with self._database.read() as session:
            return session.exec(count.where(_below(col(TextOwner.owner), FILE + folder))).one()


def _let_go(session: Session, files: Mapping[str, Collection[str]]) -> None:
    """Take all texts but these from files, by paths and ids; and from former files, as of a folder that was moved."""
    owners, owned = among([FILE + path for path in files]), aliased(TextOwner)
    theirs = col(TextOwner.text_id).in_(select(owned.text_id).where(col(owned.owner).in_(owners)))
    is_watched = select(WatchedFile.path).where(col(WatchedFile.path) == FILE_PATH).exists()
    session.exec(delete(TextOwner).where(theirs, col(TextOwner.owner).startswith(FILE), ~is_watched))
    kept = among([identity + FILE + path for path, ids in files.items() for identity in ids])
    for table in (TextOwner, DeletedText):
        has = col(table.text_id).concat(table.owner).in_(kept)
        session.exec(delete(table).where(col(table.owner).in_(owners), ~has))


def _below(path: SQLColumnExpression[str], folder: str) -> ColumnElement[bool]:
    """Whether a path is in a folder. SQLite's LIKE would ignore case."""
    start = folder.rstrip("/") + "/"
    return func.substr(path, 1, len(start)) == start
