"""Adapters, the serving one, and its ancestors. The daemon manages their files.

Each adapter started from its parent, the first of a chain from the base model. Serving another one deletes nothing, so
that it can be undone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, or_
from sqlmodel import Session, col, select, update

from pocketllm.storage.errors import HasDeletedText, WrongState
from pocketllm.storage.repositories.base import Repository, found
from pocketllm.storage.tables import BASE, OPEN_STATES, Adapter, Deletion, Event, Job, JobState, JobText, Outcome, Text


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the serving adapter. None is the base model."""

    model: str
    was: str | None
    serving: str | None
    skipped: tuple[str, ...] = ()  #: ancestors that were skipped: damaged, or with text that was deleted since


class AdapterStore(Repository):
    """Every query about adapters."""

    def get(self, adapter_id: str) -> Adapter:
        """The adapter whose id is this, or alone begins like this. Raises NotFound."""
        with self._database.read() as session:
            return found(session, Adapter, adapter_id, abbreviated=True)

    def all(self) -> list[Adapter]:
        """All adapters, newest first."""
        return self._all(select(Adapter).order_by(col(Adapter.created_at).desc()))

    def serving(self, model: str) -> Adapter | None:
        """The serving adapter of a model; None is the base model."""
        with self._database.read() as session:
            return serving_adapter(session, model)

    def withdrawn(self, model: str) -> Literal["deletion", "rollback", "damage"] | None:
        """Why no adapter is served although one was proven; None where one is served, or none ever was."""
        proven = select(Adapter).where(Adapter.model == model, Adapter.outcome == Outcome.LEARNED)
        with self._database.read() as session:
            newest = session.exec(proven.order_by(col(Adapter.created_at).desc())).first()
            if newest is None or serving_adapter(session, model) is not None:
                return None
            if _has_deleted_text(session, newest):
                return "deletion"
            return "rollback" if newest.job_id in withdrawn_jobs(session) else "damage"

    def roll_back(self, model: str, *, usable: Callable[[Adapter], bool], now: datetime) -> Change:
        """Serve the parent of the serving adapter, at last the base model.

        Skips ancestors that are not usable, or have learned text that was deleted since. Until the adapter is served
        again, no job replays the texts that only the withdrawn jobs have learned, and none starts by itself to learn
        them. Raises WrongState when the base model is serving.
        """
        with self._database.write() as session:
            serving = serving_adapter(session, model)
            if serving is None:
                raise WrongState(f"There is nothing to roll back: the base model {model} is already served.")
            _, *ancestors = chain_of(session, serving)
            skipped: list[str] = []
            for ancestor in ancestors:
                if usable(ancestor) and not _has_deleted_text(session, ancestor):
                    return _serve(session, model, serving, ancestor, tuple(skipped), now)
                skipped.append(ancestor.id)
            return _serve(session, model, serving, None, tuple(skipped), now)

    def fall_back(
        self, adapter_id: str, *, usable: Callable[[Adapter], bool], problem: str, now: datetime
    ) -> Adapter | None:
        """Serve the newest usable ancestor of the serving adapter, which is damaged. Its job's texts become new again.

        Returns what is served: if another adapter is by now, that one; None is the base model. Raises NotFound.
        """
        with self._database.write() as session:
            damaged = found(session, Adapter, adapter_id)
            serving = serving_adapter(session, damaged.model)
            if serving is damaged:
                serving = use_newest(session, damaged, usable=usable)
                session.add(Event(job_id=damaged.job_id, at=now, kind="adapter lost", message=problem))
            return serving

    def serve(
        self, adapter_id: str, *, usable: Callable[[Adapter], bool], now: datetime, deleted_text: bool = False
    ) -> Change:
        """Serve this adapter, whatever its outcome. Raises NotFound, or WrongState when its files are not usable.

        Raises HasDeletedText unless `deleted_text` allows an adapter that has learned text that was deleted since.
        """
        with self._database.write() as session:
            adapter = found(session, Adapter, adapter_id)
            if not usable(adapter):
                raise WrongState(
                    f"The files of adapter {adapter.id} are missing or damaged, or the model has other weights by now. "
                    "GET /adapters shows where they are."
                )
            if not deleted_text and _has_deleted_text(session, adapter):
                raise HasDeletedText(
                    f"Adapter {adapter.id} was trained on text that was deleted since, and may repeat it. To serve it "
                    "anyway: `pocketllm adapters serve ID --yes`, or ?deleted_text=true."
                )
            return _serve(session, adapter.model, serving_adapter(session, adapter.model), adapter, (), now)

    def delete(self, adapter_id: str) -> None:
        """Delete an adapter's row; the caller deletes its files. Its job's texts stay marked as learned.

        Raises NotFound, and WrongState while it is serving, or others were made from it.
        """
        with self._database.write() as session:
            adapter = found(session, Adapter, adapter_id)
            if adapter.serving:
                raise WrongState(f"Adapter {adapter_id} is served. Run `pocketllm rollback` first.")
            child = session.exec(select(Adapter.id).where(Adapter.parent == adapter_id)).first()
            if child is not None:
                raise WrongState(f"Adapter {child} started from {adapter_id}. Delete {child} first.")
            from_it = or_(col(Job.parent) == adapter_id, col(Job.start_from) == adapter_id)
            starting = select(Job.id).where(from_it, col(Job.state).in_(OPEN_STATES))
            if job := session.exec(starting).first():
                raise WrongState(f"Job {job} starts from {adapter_id}. Wait until it ends, or cancel it.")
            session.delete(adapter)


def serving_adapter(session: Session, model: str) -> Adapter | None:
    """The serving adapter of a model; None is the base model."""
    return session.exec(select(Adapter).where(Adapter.model == model, col(Adapter.serving))).first()


def start_of(session: Session, job: Job) -> Adapter | None:
    """The adapter that a job starts from: the requested one, else the last job's that could not tell yet, else the
    serving one; None is the base model. Raises NotFound.
    """
    if job.start_from is None or job.looks_again:
        last = undecided(session, col(Job.model) == job.model)
        return last if last is not None and last.mode == job.mode else serving_adapter(session, job.model)
    if job.judges:  # a rollback serves it again
        return serving_adapter(session, job.model)
    return None if job.start_from == BASE else found(session, Adapter, job.start_from)


def rival_of(session: Session, job: Job) -> str:
    """What a job's adapter must beat: what its request named, else what is served. An adapter's id, or BASE."""
    if job.start_from is not None and not job.judges:
        return job.start_from
    serving = serving_adapter(session, job.model)
    return serving.id if serving else BASE


def followed(session: Session, start: Adapter | None) -> Job | None:
    """The job that made an adapter, if the next one goes on with its text: it could not tell, or the night ended it."""
    made = session.get(Job, start.job_id) if start else None
    goes_on = made and start and (made.unfinished or start.outcome is Outcome.TOO_LITTLE)
    return made if made and goes_on and made.start_from is None else None


def undecided(session: Session, of_model: ColumnElement[bool]) -> Adapter | None:
    """The adapter of a model's last job, where that could not tell yet: the next job goes on from it.

    None once another adapter is served than it was compared with, it was rolled back, a text that it has seen was
    deleted, or a job that started from it failed.
    """
    ended = select(Job).where(col(Job.adapter).is_not(None), col(Job.start_from).is_(None), of_model)
    last = session.exec(ended.order_by(col(Job.finished_at).desc())).first()
    made = session.get(Adapter, last.adapter) if last else None
    if last is None or last.withdrawn or made is None or made.outcome is not Outcome.TOO_LITTLE:
        return None
    serving = serving_adapter(session, last.model)
    spoiled = {one for receipt in session.exec(select(Deletion.adapters)) for one in receipt}
    spoiled |= set(session.exec(select(Job.parent).where(Job.state == JobState.FAILED)))
    if last.adapter in spoiled or last.compared_with != (serving.id if serving else BASE):
        return None
    return made


def publish(session: Session, model: str, adapter: Adapter | None) -> None:
    """Make this adapter the serving one of its model; None is the base model."""
    session.exec(update(Adapter).where(col(Adapter.model) == model).values(serving=False))
    if adapter is not None:
        adapter.serving = True
        session.add(adapter)


def use_newest(session: Session, serving: Adapter, *, usable: Callable[[Adapter], bool]) -> Adapter | None:
    """Serve the newest usable ancestor; None is the base model. Texts that only later ones learned are new again."""
    _, *ancestors = chain_of(session, serving)
    newest = next((one for one in ancestors if usable(one) and not _has_deleted_text(session, one)), None)
    publish(session, serving.model, newest)
    kept = chain_of(session, newest)
    lost = [adapter.job_id for adapter in (serving, *ancestors) if adapter not in kept]
    session.exec(update(JobText).where(col(JobText.job_id).in_(lost)).values(learned_here=False))
    session.exec(update(Text).where(col(Text.learned_in).in_(lost)).values(learned_in=None))
    return newest


def withdrawn_jobs(session: Session) -> set[str]:
    """The jobs whose adapters the owner has rolled back and not served again."""
    return set(session.exec(select(Job.id).where(col(Job.withdrawn))))


def _has_deleted_text(session: Session, adapter: Adapter) -> bool:
    """Whether it, or an adapter that it started from, has learned text that was deleted since."""
    chain = {one.id for one in chain_of(session, adapter)}
    return any(chain.intersection(known) for known in session.exec(select(Deletion.adapters)))


def chain_of(session: Session, adapter: Adapter | None) -> list[Adapter]:
    """An adapter and its ancestors, the first of the chain last; without ancestors that were too uncertain to serve."""
    chain: list[Adapter] = []
    while adapter is not None and adapter not in chain:
        chain.append(adapter)
        adapter = session.get(Adapter, adapter.parent) if adapter.parent else None
    return [one for one in chain if one is chain[0] or one.outcome is not Outcome.TOO_LITTLE]


def _serve(
    session: Session, model: str, was: Adapter | None, adapter: Adapter | None, skipped: tuple[str, ...], now: datetime
) -> Change:
    before, after = chain_of(session, was), chain_of(session, adapter)
    change = Change(model=model, was=was.id if was else None, serving=adapter.id if adapter else None, skipped=skipped)
    if change.was == change.serving:
        return change
    publish(session, model, adapter)
    withdrawn = withdrawn_jobs(session)
    serving = adapter.id if adapter else "the base model"
    for one in before:
        if one not in after:
            message = f"the owner withdrew adapter {one.id}: {serving} is served, and its texts are set aside"
            _mark(session, one.job_id, withdrawn=True, message=message, now=now)
    for one in after:
        if one not in before and (one is adapter or one.job_id in withdrawn):
            message = f"the owner switched to {serving}"
            _mark(session, one.job_id, withdrawn=False, message=message, now=now)
    return change


def _mark(session: Session, job_id: str, *, withdrawn: bool, message: str, now: datetime) -> None:
    """Set a job's `withdrawn`, with an event that says why."""
    session.exec(update(Job).where(col(Job.id) == job_id).values(withdrawn=withdrawn))
    kind = "withdrawn" if withdrawn else "brought back"
    session.add(Event(job_id=job_id, at=now, kind=kind, message=message))
