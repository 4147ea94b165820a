"""The queue of jobs: every change of state is one guarded statement, so no job is lost or run twice."""

from collections.abc import Callable, Sequence
from datetime import datetime
from math import inf
from typing import Any

from sqlalchemy import func, or_
from sqlalchemy.dialects import sqlite
from sqlmodel import Session, col, select, update

from pocketllm.storage.database import Database
from pocketllm.storage.errors import Superseded, WrongState
from pocketllm.storage.repositories.adapters import followed, rival_of, start_of, undecided
from pocketllm.storage.repositories.adapters import publish as serve_from_now_on
from pocketllm.storage.repositories.base import Repository, found, in_use, page
from pocketllm.storage.repositories.quotas import Quota
from pocketllm.storage.repositories.reports import store_report
from pocketllm.storage.repositories.texts import OWN, NewText, assign_to_job, give_to_job, mark_learned, new_words
from pocketllm.storage.tables import BASE, OPEN_STATES, Adapter, Event, Job, JobState, Outcome, Report, RequestKey

#: Why a succeeded job's adapter is not served, whatever was proved.
_OUTDATED = ": the serving adapter changed since the job started; its texts stay new"
_ASIDE = ": its request named the model to start from"
_UNDECIDED = ": its texts stay new; newer text judges it again, and the next job starts from it"
_UNFINISHED = "; the text is worth more steps, which a job makes that follows"
#: Why a job waits that the owner has resumed.
_RESUMED = "resumed; the conditions are checked next"
#: The states of a job that can start.
_WAITING = (JobState.QUEUED, JobState.PAUSED)
#: The states of a job that its worker may write to.
_OF_ITS_WORKER = (JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED)
#: Compiled once: the scheduler queries at every tick.
_OPEN_IN_ORDER = (
    select(Job)
    .where(col(Job.state).in_(OPEN_STATES))
    .order_by(in_use(col(Job.model)).desc(), (col(Job.state) == JobState.RUNNING).desc())
    .order_by(col(Job.immediate).desc(), col(Job.created_at), col(Job.id))
)
_OPEN_SQL = str(_OPEN_IN_ORDER.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))


class JobStore(Repository):
    """Every query about jobs and their events."""

    def __init__(self, database: Database, quota: Quota | None = None) -> None:
        super().__init__(database, quota)
        #: Cache of `open`: rows and their objects.
        self._known: tuple[Sequence[Any], list[Job]] = ((), [])

    def add(
        self, job: Job, *, texts: Sequence[NewText] | None = None, proceed: bool = False, request_key: str | None = None
    ) -> Job:
        """Queue a job and store its texts, atomically. texts: to train on; None: what is new at its first start.

        The job that was returned for the same request_key is returned instead. proceed: an open job of this model on
        new text is returned instead and goes on, at once if this one is immediate. Raises QuotaExceeded.
        """
        now = job.created_at
        with self._database.write() as session:
            if request_key is not None and (known := session.get(RequestKey, request_key)):
                return found(session, Job, known.job_id)
            alike = _OPEN_IN_ORDER.where(col(Job.tuning).is_(None), Job.model == job.model, OWN)
            there = session.exec(alike).first() if proceed else None
            if there is None:
                session.add(job)
                session.flush()  # foreign keys want the row
            if request_key is not None:
                session.add(RequestKey(key=request_key, job_id=(there or job).id))
            if there is not None:
                if there.paused_by_owner or (job.immediate and (there.not_before or not there.immediate)):
                    there.paused_by_owner, there.immediate = False, there.immediate or job.immediate
                    there.not_before = None if job.immediate else there.not_before
                    there.reasons = [] if there.state is JobState.RUNNING else [_RESUMED]
                    _event(session, there.id, now, "hastened", "requested by the owner")
                return there
            if texts is not None:
                job.texts, job.words = give_to_job(session, job, texts, now, self._quota)
            _event(session, job.id, now, "queued", f"queued by {job.requested_by}")
        return job

    def is_known(self, request_key: str) -> bool:
        """Whether there is a job for this request_key."""
        with self._database.read() as session:
            return session.get(RequestKey, request_key) is not None

    def get(self, job_id: str, *, abbreviated: bool = True) -> Job:
        """The job whose id is this, or, if it may be abbreviated, alone begins like this. Raises NotFound."""
        with self._database.read() as session:
            return found(session, Job, job_id, abbreviated=abbreviated)

    def page(self, *, after: str | None, limit: int) -> list[Job]:
        """Up to `limit` jobs, newest first, after the job `after`. Raises NotFound for an unknown `after`."""
        with self._database.read() as session:
            return page(session, Job, after=after, limit=limit)

    def last(self) -> Job | None:
        """The job of the model in use that was queued last to learn something, whatever the clock said then."""
        queued = select(Job).join(Event, col(Event.job_id) == col(Job.id)).where(Event.kind == "queued", OWN)
        queued = queued.where(in_use(col(Job.model)))
        with self._database.read() as session:
            return session.exec(queued.order_by(col(Event.id).desc()).limit(1)).first()

    def ended_since(self, start: datetime) -> list[Job]:
        """The jobs that ended at this time or later, in that order."""
        return self._all(select(Job).where(col(Job.finished_at) >= start).order_by(col(Job.finished_at)))

    def states(self) -> dict[str, JobState]:
        """The state of each job."""
        with self._database.read() as session:
            return {job_id: JobState(state) for job_id, state in session.exec(select(Job.id, Job.state))}

    def counts(self) -> dict[JobState, int]:
        """The number of jobs in each state."""
        with self._database.read() as session:
            found = {JobState(k): n for k, n in session.exec(select(Job.state, func.count()).group_by(Job.state))}
        return {state: found.get(state, 0) for state in JobState}

    def open(self) -> list[Job]:
        """The open jobs in the order in which they run: the running one, immediate ones, by age; then those of other
        models, which wait. Read-only.

        Cached, since creating objects from unchanged rows would be most of a tick's time.
        """
        with self._database.read() as session:
            rows = session.connection().exec_driver_sql(_OPEN_SQL).all()
            if rows != self._known[0]:
                self._known = (rows, list(session.exec(_OPEN_IN_ORDER)))
        return list(self._known[1])

    def start(self, job_id: str, *, now: datetime) -> Job:
        """Mark a waiting job as running. Its first start fixes its texts, its parent, and the adapter to compare with.

        Raises WrongState when it is not waiting, and NotFound when the adapter to start from is gone.
        """
        with self._database.write() as session:
            first = found(session, Job, job_id).started_at is None
            event, because = "started" if first else "resumed", ["a worker has started"]
            job = transition(session, job_id, JobState.RUNNING, because, now, of=_WAITING, event=event)
            job.starts += 1
            if first:
                start = start_of(session, job)
                # A full-parameter job cannot start from an adapter, nor the other way round.
                job.started_at, job.parent = now, start.id if start and start.mode == job.mode else None
                replay = job.start_from is None or job.looks_again
                given = job.texts is not None or (job.judges and not replay)
                before = None if given or not replay else followed(session, start)
                follows = before.id if before else None
                job.texts, job.words = assign_to_job(session, job, given=given, replay=replay, follows=follows)
                job.chain_words = new_words(session, job_id)
                if before and start:
                    _follow(job, before, start)
                job.compared_with = rival_of(session, job)
                what = "the base model" if job.compared_with == BASE else job.compared_with
                _event(session, job_id, now, "compared with", what)
        return job

    def cut(self, job_id: str, *, step: int, message: str, now: datetime) -> None:
        """Let a waiting job end after this step, its last one so far."""
        with self._database.write() as session:
            found(session, Job, job_id).total_steps = step
            _event(session, job_id, now, "cut short", message)

    def last_look(self) -> Job | None:
        """The last job that has judged, or was to judge, the candidate that waits; None where none does."""
        with self._database.read() as session:
            candidate = undecided(session, in_use(col(Job.model)))
            if candidate is None or candidate.mode != "lora":  # a whole model is not judged alone
                return None
            looks = select(Job).where(or_(col(Job.id) == candidate.job_id, (col(Job.parent) == candidate.id) & ~OWN))
            ended = looks.where(col(Job.finished_at).is_not(None))
            return session.exec(ended.order_by(col(Job.finished_at).desc())).first()

    def to_follow(self, following: Job) -> Job | None:
        """The job that made what this new one would start from, if the night ended it."""
        with self._database.read() as session:
            if session.exec(select(Job.id).where(col(Job.unfinished)).limit(1)).first() is None:  # it is asked often
                return None
            last = followed(session, start_of(session, following))
            return last if last and last.unfinished else None

    def pause(
        self,
        job_id: str,
        *,
        reasons: Sequence[str],
        now: datetime,
        kind: str = "paused",
        attempts: int | None = None,
        not_before: datetime | None = None,
    ) -> None:
        """Mark a running job as paused for these reasons. Raises WrongState when it is not running.

        kind: of the event. attempts: its crashes in a row; None: as before. not_before: when it may run again.
        """
        with self._database.write() as session:
            of, to = (JobState.RUNNING,), JobState.PAUSED
            job = transition(session, job_id, to, reasons, now, of=of, event=kind, not_before=not_before)
            job.attempts = job.attempts if attempts is None else attempts

    def pause_by_owner(self, job_id: str, *, reason: str, now: datetime) -> Job:
        """Pause a waiting job until `resume_by_owner`. Raises WrongState when it is not waiting."""
        with self._database.write() as session:
            job = transition(session, job_id, JobState.PAUSED, [reason], now, of=_WAITING, event="paused by owner")
            if job.paused_by_owner:
                raise WrongState(f"Job {job_id} is already paused. POST /jobs/{job_id}/resume resumes it.")
            job.paused_by_owner = True
        return job

    def resume_by_owner(self, job_id: str, *, now: datetime) -> Job:
        """Let a job that the owner has paused run again. Raises WrongState when the owner has not."""
        with self._database.write() as session:
            job = found(session, Job, job_id)
            if not job.paused_by_owner or job.state not in OPEN_STATES:
                raise WrongState(f"Job {job_id} is {job.state} and was not paused by the owner.")
            job.paused_by_owner, job.reasons = False, [_RESUMED]
            _event(session, job_id, now, "resumed by owner", "it may continue")
        return job

    def explain(self, job_id: str, reasons: Sequence[str]) -> None:
        """Store why a job waits, without an event."""
        with self._database.write() as session:
            session.exec(
                update(Job).where(col(Job.id) == job_id, col(Job.state).in_(_WAITING)).values(reasons=list(reasons))
            )

    def cancel(self, job_id: str, *, message: str, now: datetime) -> Job:
        """Cancel an open job. Raises WrongState when it has ended."""
        with self._database.write() as session:
            return transition(session, job_id, JobState.CANCELLED, [message], now)

    def fail(self, job_id: str, *, error: str, now: datetime) -> None:
        """Mark an open job as failed. Raises WrongState when it has ended."""
        with self._database.write() as session:
            transition(session, job_id, JobState.FAILED, [error], now).error = error

    def succeed(
        self,
        job_id: str,
        *,
        adapter: Adapter,
        publish: bool,
        now: datetime,
        report: Report | None = None,
        chain_steps: int = 0,
        unfinished: bool = False,
    ) -> None:
        """End a running job in one transaction: job, adapter, serving adapter, report, learned texts.

        publish: the adapter is better than the one that was serving when the job started. If another one is serving by
        now (after a rollback or another job), the adapter is not served, and the job's texts stay new. That of a job
        that was requested to start from something by name is kept beside. chain_steps, unfinished: see Job.
        """
        with self._database.write() as session:
            job = found(session, Job, job_id)
            aside = job.start_from is not None and not job.judges
            outdated = job.compared_with not in (None, rival_of(session, job))
            served = publish and not aside and not outdated
            fate = "served" if served else "kept, not served"
            learns = job.start_from is None or job.looks_again  # and not beside, or elsewhere
            undecided = learns and adapter.outcome is Outcome.TOO_LITTLE
            goes_on = (served or undecided) and not outdated
            job.chain_steps, job.unfinished = chain_steps, unfinished and goes_on
            why = _ASIDE if aside else _OUTDATED if outdated else _UNDECIDED if undecided else ""
            why += _UNFINISHED if job.unfinished else ""
            message = f"{adapter.outcome}; adapter {adapter.id} is {fate}{why}"
            transition(session, job_id, JobState.SUCCEEDED, [message], now, of=(JobState.RUNNING,))
            job.adapter, job.outcome = adapter.id, adapter.outcome
            made = job
            if job.looks_again:
                verdict, adapter = adapter, found(session, Adapter, adapter.id)
                adapter.held_out_loss_before = verdict.held_out_loss_before
                adapter.held_out_loss_now = verdict.held_out_loss_now
                adapter.outcome, made = verdict.outcome, found(session, Job, adapter.job_id)
                made.link, made.unfinished = job.link, made.unfinished and goes_on
            else:
                adapter.serving, adapter.suffix = False, (job.tuning or {}).get("suffix")
                session.add(adapter)
            if report is not None:
                store_report(session, report)
            if served:
                serve_from_now_on(session, adapter.model, adapter)
            if not outdated and not undecided and (learns or aside):
                mark_learned(session, made.id)

    def update(self, job_id: str, **values: object) -> Job:
        """Store a job's values, such as its plan, whatever its state. Returns the job. Raises NotFound."""
        with self._database.write() as session:
            job = found(session, Job, job_id)
            for name, value in values.items():
                setattr(job, name, value)
        return job

    def set_peak_memory(self, job_id: str, peak_bytes: int) -> None:
        """Store the job's peak memory, if it is higher than before."""
        highest = func.max(func.coalesce(Job.peak_memory_bytes, 0), peak_bytes)
        self._write(update(Job).where(col(Job.id) == job_id).values(peak_memory_bytes=highest))

    def add_event(self, job_id: str, *, kind: str, message: str, now: datetime) -> None:
        """Add an event, without user text."""
        with self._database.write() as session:
            _event(session, job_id, now, kind, message)

    def events(self, job_id: str) -> list[Event]:
        """A job's events, oldest first."""
        return self._all(select(Event).where(Event.job_id == job_id).order_by(col(Event.id)))


def belongs_to(job_id: str, start: int) -> Callable[[Session], None]:
    """A check for a worker's writes: its job must still be running by its start, or have been ended by it.

    The check raises Superseded.
    """

    def check(session: Session) -> None:
        row = session.exec(select(Job.starts, Job.state).where(Job.id == job_id)).first()
        if row is None or row[0] != start or row[1] not in _OF_ITS_WORKER:
            raise Superseded

    return check


def _follow(job: Job, before: Job, start: Adapter) -> None:
    """Note a job's place in its chain. As much more text as makes a job begins the count of links anew, but not where
    the same candidate is judged again.
    """
    if job.judges or job.chain_words < before.chain_words + job.settings.get("new_words", inf):
        job.link, job.chain_words = before.link + (start.outcome is not Outcome.LEARNED), before.chain_words
    if not job.judges:
        # New text that joins a finished job's has all of its steps ahead.
        job.chain_steps, before.unfinished = before.chain_steps if before.unfinished else 0, False


def transition(
    session: Session,
    job_id: str,
    to: JobState,
    because: Sequence[str],
    now: datetime,
    *,
    of: Sequence[JobState] = OPEN_STATES,
    event: str | None = None,
    not_before: datetime | None = None,
) -> Job:
    """Write a job's state and all that goes with it, and add an event, by default with the state's name.

    The write lock is held. because: a paused job's reasons, or the event's message. of: the states that lead there.
    Raises NotFound or WrongState.
    """
    job = found(session, Job, job_id)
    if job.state not in of:
        raise WrongState(f"Job {job_id} is {job.state}; this is possible only while it is {' or '.join(of)}.")
    job.state, job.not_before = to, not_before
    job.reasons = list(because) if to is JobState.PAUSED else []
    if to not in OPEN_STATES:
        job.finished_at = now
        if job.texts is None:  # it never started: no job starts by itself on these
            job.texts, job.words = assign_to_job(session, job, given=False, replay=False)
    _event(session, job_id, now, event or to, "; ".join(because))
    return job


def _event(session: Session, job_id: str, at: datetime, kind: str, message: str) -> None:
    session.add(Event(job_id=job_id, at=at, kind=kind, message=message))
