"""Files of watched folders, as they were when they were last read.

A file is an owner of its texts, beside the person and the apps. So a text that is moved, or is in two files, stays.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, SQLColumnExpression, false, literal
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import col, delete, func, or_, select, update

from pocketllm.storage.repositories.base import Repository, among
from pocketllm.storage.repositories.deletions import delete_texts
from pocketllm.storage.repositories.texts import UNOWNED, NewText, add_texts
from pocketllm.storage.tables import OPEN_STATES, Deletion, Job, JobText, TextOwner, UtcDateTime, WatchedFile

#: Before the path of a file that is an owner, and the id of a job. No app is called like this: a name has no colon.
_OWNER, _JOB = "file:", "job:"


class Known(NamedTuple):
    """The files of a folder, by their paths below it, as they were at the last scan."""

    versions: dict[str, int]
    missing: set[str]


class FileRead(NamedTuple):
    """A file as it is now."""

    path: str
    version: int
    texts: Sequence[NewText]  #: none: what it had stays


class FolderStore(Repository):
    """Every query about watched folders."""

    def files(self, folder: str) -> Known:
        """What is known of a folder's files."""
        files = select(WatchedFile.path, WatchedFile.version, col(WatchedFile.missing_since).is_not(None))
        known = Known({}, set())
        with self._database.read() as session:
            found = files.where(_below(col(WatchedFile.path), folder)).execution_options(yield_per=1000)
            for path, version, is_missing in session.exec(found):
                name = path[len(folder.rstrip("/")) + 1 :]
                known.versions[name] = version
                if is_missing:
                    known.missing.add(name)
        return known

    def put(self, files: Sequence[FileRead], now: datetime) -> None:
        """Store what files have now, in place of what they had. All or none of them."""
        pairs = [(text, _OWNER + file.path) for file in files for text in file.texts]
        with self._database.write() as session:
            session.exec(delete(TextOwner).where(col(TextOwner.owner).in_(among({owner for _, owner in pairs}))))
            add_texts(session, [text for text, _ in pairs], [owner for _, owner in pairs], now)
            rows = insert(WatchedFile).values([{"path": file.path, "version": file.version} for file in files])
            updated = {"version": rows.excluded.version, "missing_since": None}
            session.connection().execute(rows.on_conflict_do_update(index_elements=["path"], set_=updated))

    def drop_replaced(self, now: datetime) -> None:
        """Delete what files no longer have because they were changed. What has learned it is served on.

        An open job has what it uses of it until the job ends: an edit does not make it start again.
        """
        is_open = col(Job.state).in_(OPEN_STATES)
        in_use = select(col(JobText.text_id), _JOB + col(JobText.job_id), literal(now, UtcDateTime)).join(Job)
        in_use = in_use.where(is_open, col(JobText.text_id).not_in(select(TextOwner.text_id)))
        ended = col(TextOwner.owner).not_in(select(_JOB + col(Job.id)).where(is_open))
        with self._database.write() as session:
            session.exec(delete(TextOwner).where(func.substr(TextOwner.owner, 1, len(_JOB)) == _JOB, ended))
            session.exec(insert(TextOwner).from_select(["text_id", "owner", "sent_at"], in_use))
            delete_texts(session, UNOWNED, now, withdraw=False)

    def mark(self, paths: Sequence[str], missing_since: datetime | None) -> None:
        """Note since when these files are missing; None: they are there again."""
        files = update(WatchedFile).where(col(WatchedFile.path).in_(among(paths)))
        self._write(files.values(missing_since=missing_since))

    def forget(self, paths: Sequence[str], now: datetime) -> Deletion | None:
        """Forget files, and delete the texts that no other file has. Returns the receipt, or None without a text."""
        with self._database.write() as session:
            session.exec(delete(TextOwner).where(col(TextOwner.owner).in_(among([_OWNER + path for path in paths]))))
            session.exec(delete(WatchedFile).where(col(WatchedFile.path).in_(among(paths))))
            return delete_texts(session, UNOWNED, now)

    def keep_only(self, folders: Collection[str]) -> None:
        """Forget the files of folders that are watched no longer. Their texts stay."""
        watched = or_(false(), *(_below(col(WatchedFile.path), folder) for folder in folders))
        self._write(delete(WatchedFile).where(~watched))

    def texts(self, folder: str) -> int:
        """The number of a folder's texts."""
        count = select(func.count(col(TextOwner.text_id).distinct()))
        with self._database.read() as session:
            return session.exec(count.where(_below(col(TextOwner.owner), _OWNER + folder))).one()


def _below(path: SQLColumnExpression[str], folder: str) -> ColumnElement[bool]:
    """Whether a path is in a folder. SQLite's LIKE would ignore case."""
    start = folder.rstrip("/") + "/"
    return func.substr(path, 1, len(start)) == start
