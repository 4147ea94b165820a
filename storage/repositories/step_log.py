"""The step log: one row a step, the held-out evaluations, and a job's progress."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any

from sqlalchemy import func, or_
from sqlmodel import Field, Session, SQLModel, col, delete, select

from pocketllm.storage.repositories.base import Repository, among, found
from pocketllm.storage.tables import Evaluation, Event, Job, Step

#: The step number of the base model's evaluation, and of a part of one, which a resumed job completes.
BASE_STEP, PART_STEP = -1, -2
#: Loss and speed are means over this many steps.
RECENT_STEPS = 20
#: The most points of a curve, and the steps that each is a mean of at most: not all rows of a long job are read.
CURVE_POINTS, POINT_STEPS = 200, 5


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A job's progress. None: not known yet."""

    step: int
    loss: float | None  # nats per token, mean of the recent steps
    tokens_per_second: float | None
    seconds_per_step: float | None
    held_out_loss_before: float | None  # nats per token
    held_out_loss_now: float | None


class HeldOutPoint(SQLModel):
    """A measurement on held-out text."""

    step: int
    held_out_loss: float = Field(description="Nats per token.")


class TrainingPoint(SQLModel):
    """A few training steps."""

    step: int = Field(description="The last of these steps.")
    loss: float = Field(description="Nats per token, the mean of up to 5 steps.")


class Curve(SQLModel):
    """A job's losses, thinned to at most 200 points each."""

    held_out: list[HeldOutPoint]
    training: list[TrainingPoint]


class StepLog(Repository):
    """Every query about steps and evaluations."""

    def append(self, step: Step) -> None:
        """Commit one step. The primary key refuses a second row for the same step.

        Raises ValueError for scalars that are not finite.
        """
        if not step.scalars or not all(map(isfinite, step.scalars)):
            raise ValueError(f"Step {step.step} of job {step.job_id} has the scalars {step.scalars}.")
        with self._database.write() as session:
            session.add(step)

    def steps(self, job_id: str) -> list[Step]:
        """All rows of a job, in order."""
        return self._all(select(Step).where(Step.job_id == job_id).order_by(col(Step.step)))

    def last_step(self, job_id: str) -> int:
        """The number of the last finished step; 0 before the first."""
        with self._database.read() as session:
            return last_step(session, job_id)

    def go_back(
        self, job_id: str, *, step: int, early_stopping: dict[str, Any], ended: bool, message: str | None, now: datetime
    ) -> None:
        """Delete all steps and evaluations after a step, and store early stopping, atomically.

        ended: the job ends with that step. message: of an event; None: no event.
        """
        with self._database.write() as session:
            _delete_after(session, job_id, step)
            job = found(session, Job, job_id)
            job.early_stopping = early_stopping
            if ended:
                job.total_steps = step
            if message is not None:
                kind = "ended early" if ended else "went back"
                session.add(Event(job_id=job_id, at=now, kind=kind, message=message))

    def evaluate(
        self, job_id: str, *, step: int, loss: float, block_losses: Mapping[str, float], now: datetime
    ) -> None:
        """Store a held-out evaluation: its loss, in nats per token, and each block's by its key."""
        row = Evaluation(job_id=job_id, step=step, loss=loss, block_losses=dict(block_losses), at=now)
        with self._database.write() as session:
            session.merge(row)

    def evaluation(self, job_id: str, step: int) -> Evaluation | None:
        """The held-out evaluation at a step, if there is one."""
        with self._database.read() as session:
            return session.get(Evaluation, (job_id, step))

    def progress(self, job_id: str) -> Progress:
        """A job's progress, from its recent rows."""
        of_job = select(Evaluation.loss).where(Evaluation.job_id == job_id, Evaluation.step >= 0)
        newest_first = select(Step).where(Step.job_id == job_id).order_by(col(Step.step).desc())
        with self._database.read() as session:
            recent = session.exec(newest_first.limit(RECENT_STEPS)).all()
            losses = session.exec(of_job.order_by(col(Evaluation.step))).all()
        seconds = sum(row.seconds for row in recent)
        return Progress(
            step=recent[0].step if recent else 0,
            loss=sum(row.loss for row in recent) / len(recent) if recent else None,
            tokens_per_second=sum(row.tokens for row in recent) / seconds if seconds else None,
            seconds_per_step=seconds / len(recent) if recent else None,
            held_out_loss_before=losses[0] if losses else None,
            held_out_loss_now=losses[-1] if losses else None,
        )

    def curve(self, job_id: str) -> Curve:
        """The job's losses, at most CURVE_POINTS each, including the last one."""
        measured = select(Evaluation.step, Evaluation.loss).where(Evaluation.job_id == job_id, Evaluation.step >= 0)
        with self._database.read() as session:  # one snapshot: a worker may go back at any time
            last = last_step(session, job_id)
            parts = min(last, CURVE_POINTS)
            ends = [number * last // parts for number in range(1, parts + 1)]
            read = {step for end in ends for step in range(max(1, end - POINT_STEPS + 1), end + 1)}
            part = (col(Step.step) * parts - 1) // last
            of_job = select(func.max(Step.step), func.avg(Step.loss)).where(Step.job_id == job_id)
            means = of_job.where(col(Step.step).in_(among(read))).group_by(part)
            training = [TrainingPoint(step=n, loss=round(loss, 4)) for n, loss in session.exec(means.order_by(part))]
            held_out = [
                HeldOutPoint(step=n, held_out_loss=round(loss, 4))
                for n, loss in session.exec(measured.order_by(col(Evaluation.step)))
            ]
        return Curve(held_out=_thinned(held_out), training=training)


def forget_steps(session: Session, job: Job) -> None:
    """Delete all steps and evaluations, early stopping and plan of an open job, so that it starts again."""
    _delete_after(session, job.id, BASE_STEP - 1)
    job.early_stopping = job.plan = None
    if job.fits_the_night:
        job.total_steps = None


def _delete_after(session: Session, job_id: str, step: int) -> None:
    """Delete all steps and evaluations after a step, and the part of one."""
    for table in (Step, Evaluation):
        gone = or_(col(table.step) > step, col(table.step) == PART_STEP)
        session.exec(delete(table).where(col(table.job_id) == job_id, gone))


def last_step(session: Session, job_id: str) -> int:
    """The number of a job's last finished step; 0 before the first."""
    return session.exec(select(func.max(Step.step)).where(Step.job_id == job_id)).one() or 0


def _thinned(points: list[HeldOutPoint]) -> list[HeldOutPoint]:
    """At most CURVE_POINTS of the points, evenly spread, including the first and the last."""
    if len(points) <= CURVE_POINTS:
        return points
    return [points[place * (len(points) - 1) // (CURVE_POINTS - 1)] for place in range(CURVE_POINTS)]
