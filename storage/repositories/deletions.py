"""Deleting texts, with what was derived from them, and a receipt for each deletion.

Deleted bytes are overwritten in the database file at once (secure_delete), but the write-ahead log has them until it is
cut, which another process's reading prevents. So a deletion is pending until the log was cut after it.
"""

import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, null, or_
from sqlmodel import Session, col, delete, select, update

from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories import passages
from pocketllm.storage.repositories.adapters import chain_of, serving_adapter, start_of, use_newest
from pocketllm.storage.repositories.base import Repository, found
from pocketllm.storage.repositories.step_log import forget_steps
from pocketllm.storage.repositories.texts import UNOWNED, alone, disown, remember_files
from pocketllm.storage.tables import BASE, OPEN_STATES, Adapter, Deletion, Event, Job, JobState, JobText, Report, Text

_AGAIN = "one of its texts was deleted; the job starts again without it"


class DeletionStore(Repository):
    """Every query about deletions."""

    def texts(self, ids: Sequence[str], *, now: datetime) -> Deletion:
        """Delete texts. Raises NotFound when there is none of them."""
        return self._delete(col(Text.id).in_(ids), f"There is no text {', '.join(ids)!r}.", now)

    def source(self, source: str, *, now: datetime) -> Deletion:
        """Delete all texts of a source. Raises NotFound."""
        return self._delete(col(Text.source) == source, f"The source {source!r} has no texts.", now)

    def app(self, app: str, *, now: datetime) -> Deletion:
        """Delete all texts that an app alone has sent; the others are its own no longer. Raises NotFound."""
        with self._database.write() as session:
            if not disown(session, app):
                raise NotFound(f"The app {app!r} has no texts. GET /texts lists all texts.")
            return delete_texts(session, UNOWNED, now) or empty_deletion(session, now)

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
        """The deletions whose bytes may still be in the log."""
        return self._all(select(Deletion).where(col(Deletion.erased).is_(False)))

    def update(self, ids: Sequence[str], **values: object) -> None:
        """Store values of deletions, such as the job that learns again what is left."""
        self._write(update(Deletion).where(col(Deletion.id).in_(ids)).values(**values))

    def erase(self, pending: Sequence[Deletion]) -> bool:
        """Cut the log, and mark these deletions as erased; False while another process reads."""
        if not pending:
            return True
        if not self._database.truncate_log():
            return False
        self.update([deletion.id for deletion in pending], erased=True)
        return True

    def _delete(self, which: ColumnElement[bool], missing: str, now: datetime) -> Deletion:
        with self._database.write() as session:
            deletion = delete_texts(session, which, now)
        if deletion is None:
            raise NotFound(f"{missing} GET /texts lists all texts.")
        return deletion


def delete_texts(
    session: Session, which: ColumnElement[bool], now: datetime, *, withdraw: bool = True
) -> Deletion | None:
    """Delete texts and what was derived from them; returns the receipt, or None when there is no such text.

    withdraw: False where other texts have replaced them: what has learned the old wording is served on.

    Reports lose their words, open jobs start again, and what is served is the newest adapter that has not learned any
    of the texts. Texts that only later adapters have learned become new again.
    """
    texts, jobs, adapters = _affected(session, which)
    if not texts:
        return None
    adapters = adapters if withdraw else ()
    session.exec(update(Report).where(col(Report.job_id).in_(jobs)).values(content=null()))
    affected = {adapter.id for adapter in adapters}
    replaced = False
    for model in {adapter.model for adapter in adapters}:
        serving = serving_adapter(session, model)
        if serving is not None and serving.id in affected:
            use_newest(session, serving, usable=lambda adapter: adapter.id not in affected)
            replaced = True
    contents = select(Text.id, Text.text, Text.completion).where(which)
    passages.forget(session.connection(), ((row[0], row[1], row[2]) for row in session.exec(contents)))
    deletion = empty_deletion(session, now)
    deletion.files = remember_files(session, which)
    session.exec(delete(Text).where(which))
    deletion.texts, deletion.adapters, deletion.replaced = texts, sorted(affected), replaced
    deletion.restarts = _restarted(session, jobs, now)
    return deletion


def empty_deletion(session: Session, now: datetime) -> Deletion:
    """A receipt for the deletion of something that nothing was derived from."""
    deletion = Deletion(id=f"deletion-{secrets.token_hex(6)}", at=now, texts=0)
    session.add(deletion)
    return deletion


def _affected(session: Session, which: ColumnElement[bool]) -> tuple[int, set[str], Sequence[Adapter]]:
    """The number of these texts, the jobs that know one of them, and these jobs' adapters."""
    texts = session.exec(select(func.count()).select_from(Text).where(which)).one()
    jobs = _knowing(session, which)
    return texts, jobs, session.exec(select(Adapter).where(col(Adapter.job_id).in_(jobs))).all()


def _knowing(session: Session, texts: ColumnElement[bool]) -> set[str]:
    """The jobs that use one of the texts, and those that start from the adapters of such jobs, and so on."""
    using: Select[Any] = (
        select(col(JobText.job_id).label("id")).join(Text, col(Text.id) == col(JobText.text_id)).where(texts)
    )
    knowing = using.cte("knowing", recursive=True)
    descending = (
        select(col(Job.id))
        .join(Adapter, col(Adapter.id) == col(Job.parent))
        .join(knowing, col(Adapter.job_id) == knowing.c.id)
    )
    return set(session.exec(select(knowing.union(descending).c.id)))


def _restarted(session: Session, jobs: Collection[str], now: datetime) -> list[str]:
    """Let the open ones of these jobs start again. A worker that is at one cannot write to it any more."""
    restarted = []
    for job in session.exec(select(Job).where(col(Job.id).in_(jobs), col(Job.state).in_(OPEN_STATES))):
        own = select(func.count(), func.coalesce(func.sum(Text.words), 0)).join(
            JobText, col(JobText.text_id) == col(Text.id)
        )
        job.texts, job.words = session.exec(own.where(JobText.job_id == job.id)).one()
        if job.started_at is None:
            continue
        forget_steps(session, job)
        now_in = select(Text.learned_in).where(col(Text.id) == col(JobText.text_id)).scalar_subquery()
        old = update(JobText).where(col(JobText.job_id) == job.id, col(JobText.learned_in).is_not(None))
        session.exec(old.values(learned_in=now_in))  # that of a withdrawn adapter is new again
        start, serving = start_of(session, job), serving_adapter(session, job.model)
        job.parent = start.id if start and start.mode == job.mode else None
        job.compared_with = job.start_from or (serving.id if serving else BASE)
        job.starts += 1
        if job.state is JobState.RUNNING:
            job.state = JobState.PAUSED
        job.reasons = [_AGAIN]
        session.add(Event(job_id=job.id, at=now, kind="began anew", message=_AGAIN))
        restarted.append(job.id)
    return restarted
