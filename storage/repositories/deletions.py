"""Deleting texts, with what was derived from them, and a receipt for each deletion.

What is deleted is overwritten in the database file (secure_delete), and its log is cut. But a reader prevents the cut,
and pages that SQLite has balanced may have copies in their gaps. So a deletion is pending until the file was written
anew after it.
"""

import secrets
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal, null, or_
from sqlmodel import Session, col, delete, select, update

from pocketllm.storage.errors import NotFound, StorageTrouble
from pocketllm.storage.repositories import passages
from pocketllm.storage.repositories.adapters import chain_of, rival_of, serving_adapter, start_of, use_newest
from pocketllm.storage.repositories.base import Repository, among, found, in_use, missing
from pocketllm.storage.repositories.jobs import transition
from pocketllm.storage.repositories.step_log import forget_steps
from pocketllm.storage.repositories.texts import UNOWNED, alone, learner, remember_files
from pocketllm.storage.tables import (
    ADDED,
    OPEN_STATES,
    Adapter,
    Deletion,
    Job,
    JobState,
    JobText,
    Report,
    Text,
    TextOwner,
    UploadedFile,
)

#: Words of the texts that are deleted in one transaction: a word has at most eight bytes (`count_words`), and the log
#: of a portion must fit into the room that is reserved for deleting.
PORTION_WORDS = 250_000
_LISTED = "GET /texts lists all texts."
_AGAIN = "one of its texts was deleted; the job starts again without it"


class DeletionStore(Repository):
    """Every query about deletions."""

    def texts(self, ids: Sequence[str], *, now: datetime) -> Deletion:
        """Delete texts. Raises NotFound when there is none of them."""
        return self._delete(col(Text.id).in_(ids), missing(Text, ", ".join(ids)), now)

    def source(self, source: str, *, now: datetime) -> Deletion:
        """Delete all texts of a source. Raises NotFound."""
        return self._delete(col(Text.source) == source, f"The source {source!r} has no texts. {_LISTED}", now)

    def app(self, app: str, *, now: datetime) -> Deletion:
        """Delete an app's files, and all texts that it alone has sent; the others are its own no longer.

        Raises NotFound.
        """
        sent = col(Text.id).in_(select(TextOwner.text_id).where(TextOwner.owner == app))
        of_app = col(UploadedFile.owner) == app
        return self._delete(sent, f"The app {app!r} has no texts. {_LISTED}", now, owner=app, files=of_app)

    def file(self, identity: str, *, now: datetime) -> Deletion:
        """Delete an uploaded file and the texts taken from it. Raises NotFound."""
        is_file = col(UploadedFile.id) == identity
        return self._delete(col(Text.source) == identity, missing(UploadedFile, identity), now, files=is_file)

    def cost(self, model: str, *, ids: Collection[str], source: str, app: str) -> tuple[int, list[str], str | None]:
        """What the deletion of these texts, and those of a source and of an app, would cost a model: how many there
        are, the adapters that know one of them, and which one would be served then, None being the base model.
        """
        which = or_(col(Text.id).in_(ids), col(Text.source) == source, col(Text.id).in_(alone(app)))
        with self._database.read() as session:
            texts, _, adapters = _affected(session, which)
            known = sorted(adapter.id for adapter in adapters)
            chain = chain_of(session, serving_adapter(session, model))
        return texts, known, next((one.id for one in chain if one.id not in known), None)

    def get(self, deletion_id: str) -> Deletion:
        """The receipt with this id. Raises NotFound."""
        with self._database.read() as session:
            return found(session, Deletion, deletion_id)

    def pending(self) -> list[Deletion]:
        """The deletions of which traces may still be in the file or its log."""
        return self._all(select(Deletion).where(col(Deletion.erased).is_(False)))

    def update(self, ids: Sequence[str], **values: object) -> None:
        """Store values of deletions, such as the job that learns again what is left."""
        self._write(update(Deletion).where(col(Deletion.id).in_(ids)).values(**values))

    def erase(self, pending: Sequence[Deletion]) -> bool:
        """Write the database anew, and mark these deletions as erased; False while another process reads it."""
        if not pending:
            return True
        if not self._database.rewrite(passages.OPTIMIZE):
            return False
        self.update([deletion.id for deletion in pending], erased=True)
        return True

    def _delete(
        self,
        which: ColumnElement[bool],
        not_found: str,
        now: datetime,
        *,
        owner: str | None = None,
        files: ColumnElement[bool] | None = None,
    ) -> Deletion:
        """Delete texts, or of these what this owner has alone, and uploaded files; returns one receipt.

        Goes by portions, each a transaction, since a full disk has no room for a long log. Where one fails, those
        before it stay deleted. Raises NotFound, with this message, where there is nothing.
        """
        receipt: Deletion | None = None
        try:
            while True:
                self._shorten_log()
                with self._database.write() as session:
                    gone = 0 if files is None else session.exec(delete(UploadedFile).where(files)).rowcount
                    portion = among(ids := _portion(session, which))
                    if not ids and not gone:
                        break
                    those: ColumnElement[bool] = col(Text.id).in_(portion)
                    if owner is not None:
                        is_owned = col(TextOwner.owner) == owner, col(TextOwner.text_id).in_(portion)
                        session.exec(delete(TextOwner).where(*is_owned))
                        those = and_(those, UNOWNED)
                    receipt = session.merge(receipt) if receipt else empty_deletion(session, now)
                    delete_texts(session, those, now, receipt=receipt)
        finally:
            self._shorten_log()
        if receipt is None:
            raise NotFound(not_found)
        return receipt

    def _shorten_log(self) -> None:
        with suppress(StorageTrouble):
            self._database.truncate_log()


def delete_texts(
    session: Session,
    which: ColumnElement[bool],
    now: datetime,
    *,
    withdraw: bool = True,
    receipt: Deletion | None = None,
) -> Deletion | None:
    """Delete texts and what was derived from them; returns the receipt, or None when there is no such text.

    withdraw: False where other texts have replaced them: what has learned the old wording is served on, and jobs go on
    from it. receipt: of an earlier portion of the same deletion, which is added to.

    Uploaded files that they came from are deleted. Reports lose their words, open jobs start again, and what is served
    is the newest adapter that has not learned any of the texts. Texts that only later adapters have learned become new
    again.
    """
    texts, jobs, adapters = _affected(session, which, added=withdraw)
    if not texts:
        return receipt
    deletion = receipt or empty_deletion(session, now)
    affected = {adapter.id for adapter in adapters if withdraw}.union(deletion.adapters)
    session.exec(update(Report).where(col(Report.job_id).in_(jobs)).values(content=null()))
    for model in {adapter.model for adapter in adapters if withdraw}:
        serving = serving_adapter(session, model)
        if serving is not None and serving.id in affected:
            use_newest(session, serving, usable=lambda adapter: adapter.id not in affected)
            deletion.replaced = deletion.replaced or session.exec(select(in_use(literal(model)))).one()
    contents = select(Text.number, Text.text, Text.completion).where(which)
    passages.forget(session.connection(), session.connection().execute(contents))
    session.exec(delete(UploadedFile).where(col(UploadedFile.id).in_(select(Text.source).where(which))))
    deletion.files = sorted({*deletion.files, *remember_files(session, which)})
    session.exec(delete(Text).where(which))
    deletion.texts, deletion.adapters = deletion.texts + texts, sorted(affected)
    if withdraw:
        deletion.restarts = deletion.restarts + _restarted(session, jobs, now, again=deletion.restarts)
    return deletion


def _portion(session: Session, which: ColumnElement[bool]) -> list[str]:
    """The first of these texts, until they have PORTION_WORDS words."""
    ids: list[str] = []
    with closing(session.exec(select(Text.id, Text.words).where(which))) as rows:
        words = 0
        for identity, more in rows:
            ids.append(identity)
            words += more
            if words >= PORTION_WORDS:
                break
    return ids


def empty_deletion(session: Session, now: datetime) -> Deletion:
    """A receipt for the deletion of something that nothing was derived from."""
    deletion = Deletion(id=f"deletion-{secrets.token_hex(6)}", at=now, texts=0)
    session.add(deletion)
    return deletion


def _affected(session: Session, which: ColumnElement[bool], added: bool = True) -> tuple[int, set[str], list[Adapter]]:
    """The number of these texts, the jobs that know one of them, and these jobs' adapters. added: see `_knowing`."""
    texts = session.exec(select(func.count()).select_from(Text).where(which)).one()
    jobs = _knowing(session, which, added=added)
    return texts, jobs, list(session.exec(select(Adapter).where(col(Adapter.job_id).in_(jobs))))


def _knowing(session: Session, texts: ColumnElement[bool], *, added: bool) -> set[str]:
    """The jobs that use one of the texts, and those that start from the adapters of such jobs, and so on.

    added: so do those of adapters that were trained elsewhere, on text that is not known here.
    """
    using: Select[Any] = select(col(Job.id).label("id")).where(
        col(Job.id).in_(select(JobText.job_id).join(Text, col(Text.id) == col(JobText.text_id)).where(texts))
        | (col(Job.start_from) == ADDED) & literal(added)
    )
    knowing = using.cte("knowing", recursive=True)
    descending = (
        select(col(Job.id))
        .join(Adapter, col(Adapter.id) == col(Job.parent))
        .join(knowing, col(Adapter.job_id) == knowing.c.id)
    )
    return set(session.exec(select(knowing.union(descending).c.id)))


def _restarted(session: Session, jobs: Collection[str], now: datetime, again: Collection[str]) -> list[str]:
    """Let the open ones of these jobs start again. A worker that is at one cannot write to it any more.

    again: those that an earlier portion has started again. Returns the others.
    """
    restarted = []
    for job in session.exec(select(Job).where(col(Job.id).in_(jobs), col(Job.state).in_(OPEN_STATES))):
        own = select(func.count(), func.coalesce(func.sum(Text.words), 0)).join(
            JobText, col(JobText.text_id) == col(Text.id)
        )
        job.texts, job.words = session.exec(own.where(JobText.job_id == job.id)).one()
        if job.started_at is None:
            continue
        forget_steps(session, job)
        old = update(JobText).where(col(JobText.job_id) == job.id, col(JobText.learned_in).is_not(None))
        now_in = learner(col(JobText.text_id), job.model)
        session.exec(old.values(learned_in=now_in))  # that of a withdrawn adapter is new again
        start = start_of(session, job)
        job.parent = start.id if start and start.mode == job.mode else None
        job.compared_with = rival_of(session, job)
        job.starts += 1
        if job.id not in again:
            restarted.append(job.id)
        elif job.state is JobState.PAUSED:
            continue  # no worker was started since that portion
        transition(session, job.id, JobState.PAUSED, [_AGAIN], now, event="began anew", not_before=job.not_before)
    return restarted
