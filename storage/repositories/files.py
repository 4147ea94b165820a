"""Uploaded files, which are stored until they are deleted, with the texts taken from them."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy.orm import defer
from sqlmodel import col, select

from pocketllm.storage.repositories.base import Repository, found
from pocketllm.storage.repositories.quotas import ROW_BYTES
from pocketllm.storage.tables import UploadedFile


class FileStore(Repository):
    """Every query about files. A file's id is the source of the texts that jobs take from it."""

    def add(self, *, owner: str, filename: str, purpose: str, data: bytes, now: datetime) -> UploadedFile:
        """Store a file. It is on disk when this returns. Raises QuotaExceeded."""
        size = len(data)
        file = UploadedFile(owner=owner, filename=filename, purpose=purpose, size=size, data=data, created_at=now)
        with self._database.write() as session:
            if self._quota:
                self._quota.check(session, owner, now, nbytes=size + ROW_BYTES)
            session.add(file)
        return file

    def get(self, identity: str) -> UploadedFile:
        """The file with this id. Raises NotFound."""
        with self._database.read() as session:
            return found(session, UploadedFile, identity)

    def all(self) -> list[UploadedFile]:
        """All files, newest first, without their data."""
        newest_first = select(UploadedFile).order_by(col(UploadedFile.created_at).desc(), col(UploadedFile.id).desc())
        return self._all(newest_first.options(defer(cast(Any, UploadedFile.data), raiseload=True)))
