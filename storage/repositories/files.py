"""Uploaded files, which are stored until they are deleted, with the texts taken from them."""

import hashlib
from datetime import datetime
from typing import Any, cast

from sqlalchemy.orm import defer
from sqlmodel import col, select

from pocketllm.storage.repositories.base import Repository, found
from pocketllm.storage.repositories.deletions import delete_texts, empty_deletion
from pocketllm.storage.repositories.quotas import ROW_BYTES
from pocketllm.storage.tables import Deletion, Text, UploadedFile


def file_id(owner: str, filename: str, purpose: str, data: bytes) -> str:
    """The id of a file: a hash of its owner, name, purpose and content: a repeated upload is the same file."""
    named = f"{owner}\0{filename}\0{purpose}\0".encode()
    return f"file-{hashlib.sha256(named + data).hexdigest()[:24]}"


class FileStore(Repository):
    """Every query about files. A file's id is the source of the texts that jobs take from it."""

    def add(self, *, owner: str, filename: str, purpose: str, data: bytes, now: datetime) -> UploadedFile:
        """Store a file, or find it if it exists. It is on disk when this returns. Raises QuotaExceeded."""
        identity = file_id(owner, filename, purpose, data)
        with self._database.write() as session:
            if (file := session.get(UploadedFile, identity)) is None:
                if self._quota:
                    self._quota.check(session, owner, now, nbytes=len(data) + ROW_BYTES)
                file = UploadedFile(
                    id=identity,
                    owner=owner,
                    filename=filename,
                    purpose=purpose,
                    size=len(data),
                    data=data,
                    created_at=now,
                )
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

    def delete(self, identity: str, *, now: datetime) -> Deletion:
        """Delete a file and the texts taken from it. Raises NotFound."""
        with self._database.write() as session:
            session.delete(found(session, UploadedFile, identity))
            return delete_texts(session, col(Text.source) == identity, now) or empty_deletion(session, now)
