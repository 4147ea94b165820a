"""The journal: one committed row a step, the held-out measurements beside it, and progress read off them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func
from sqlmodel import col, select

from pocketllm.storage.database import Database
from pocketllm.storage.tables import Evaluation, Step

#: Loss and speed are shown as means over this many steps: one batch says little.
RECENT_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is. None where nothing is known yet."""

    step: int
    loss: float | None  # nats per token, mean of the recent steps
    tokens_per_second: float | None
    seconds_per_step: float | None
    held_out_loss_before: float | None  # nats per token
    held_out_loss_now: float | None


class Journal:
    """Every query about steps and evaluations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, step: Step) -> None:
        """Commit one step. A second row for the same step is refused by the primary key."""
        with self._database.write() as session:
            session.add(step)

    def steps(self, job_id: str) -> list[Step]:
        """All rows of a job, in order: what a replay needs."""
        with self._database.read() as session:
            return list(session.exec(select(Step).where(Step.job_id == job_id).order_by(col(Step.step))))

    def last_step(self, job_id: str) -> int:
        """The number of the last finished step; 0 before the first."""
        with self._database.read() as session:
            return session.exec(select(func.max(Step.step)).where(Step.job_id == job_id)).one() or 0

    def evaluate(
        self, job_id: str, *, step: int, block_losses: Sequence[float], weights: Sequence[int], now: datetime
    ) -> None:
        """Keep a held-out measurement: each block's loss, and each block's tokens as its weight in the mean."""
        mean = sum(loss * weight for loss, weight in zip(block_losses, weights, strict=True)) / sum(weights)
        row = Evaluation(job_id=job_id, step=step, loss=mean, block_losses=list(block_losses), at=now)
        with self._database.write() as session:
            session.merge(row)

    def evaluation(self, job_id: str, step: int) -> Evaluation | None:
        """The held-out measurement at a step, if it was made."""
        with self._database.read() as session:
            return session.get(Evaluation, (job_id, step))

    def progress(self, job_id: str) -> Progress:
        """How far a job is, from its recent rows."""
        recent_rows = select(Step).where(Step.job_id == job_id).order_by(col(Step.step).desc()).limit(RECENT_STEPS)
        measured = select(Evaluation.loss).where(Evaluation.job_id == job_id).order_by(col(Evaluation.step))
        with self._database.read() as session:
            recent = list(session.exec(recent_rows))
            losses = list(session.exec(measured))
        seconds = sum(row.seconds for row in recent)
        return Progress(
            step=recent[0].step if recent else 0,
            loss=sum(row.loss for row in recent) / len(recent) if recent else None,
            tokens_per_second=sum(row.tokens for row in recent) / seconds if seconds else None,
            seconds_per_step=seconds / len(recent) if recent else None,
            held_out_loss_before=losses[0] if losses else None,
            held_out_loss_now=losses[-1] if losses else None,
        )
