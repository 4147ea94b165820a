"""Uploaded files, which are stored until they are deleted or expire, with the texts taken from them."""

import hashlib
from datetime import datetime
from typing import Any, cast

from sqlalchemy.orm import defer
from sqlmodel import Session, col, delete, select

from pocketllm.storage.database import Database
from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories.texts import delete_texts
from pocketllm.storage.tables import Text, UploadedFile


def file_id(filename: str, purpose: str, data: bytes) -> str:
    """The id of a file: a hash of its name, purpose and content, so that a repeated upload is the same file."""
    named = f"{filename}\0{purpose}\0".encode()
    return f"file-{hashlib.sha256(named + data).hexdigest()[:24]}"


class FileStore:
    """Every query about files. A file's id is the source of the texts that jobs take from it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, *, filename: str, purpose: str, data: bytes, expires_at: datetime | None, now: datetime
    ) -> UploadedFile:
        """Store a file, or find it if it exists. It is on disk when this returns."""
        identity = file_id(filename, purpose, data)
        with self._database.write() as session:
            file = session.get(UploadedFile, identity)
            if file is None:
                file = UploadedFile(
                    id=identity, filename=filename, purpose=purpose, size=len(data), data=data, created_at=now
                )
            file.expires_at = expires_at
            session.add(file)
        return file

    def get(self, identity: str) -> UploadedFile:
        """The file with this id. Raises NotFound."""
        with self._database.read() as session:
            file = session.get(UploadedFile, identity)
        if file is None:
            raise NotFound(_no_file(identity))
        return file

    def all(self) -> list[UploadedFile]:
        """All files, newest first, without their data."""
        newest_first = select(UploadedFile).order_by(col(UploadedFile.created_at).desc(), col(UploadedFile.id).desc())
        with self._database.read() as session:
            return list(session.exec(newest_first.options(defer(cast(Any, UploadedFile.data), raiseload=True))))

    def delete(self, identity: str) -> None:
        """Delete a file and the texts taken from it; the bytes are overwritten. Raises NotFound."""
        with self._database.write() as session:
            if not _deleted(session, identity):
                raise NotFound(_no_file(identity))
        self._database.truncate_log()

    def delete_expired(self, now: datetime) -> None:
        """Delete the expired files, likewise."""
        expired = select(UploadedFile.id).where(col(UploadedFile.expires_at) <= now)
        with self._database.read() as session:
            ids = list(session.exec(expired))
        for identity in ids:
            with self._database.write() as session:
                _deleted(session, identity)
        if ids:
            self._database.truncate_log()


def _deleted(session: Session, identity: str) -> bool:
    delete_texts(session, col(Text.source) == identity)
    return session.exec(delete(UploadedFile).where(col(UploadedFile.id) == identity)).rowcount > 0


def _no_file(identity: str) -> str:
    return f"There is no file {identity!r}. GET /v1/files lists those that are here."
