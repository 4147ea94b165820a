"""Reports of jobs: numbers, and content, which is deleted with any text of the job."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, null
from sqlmodel import Session, col, select, update

from pocketllm.storage.database import Database
from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.tables import OPEN_STATES, Adapter, Job, JobState, JobText, Report, Text

_ENDED = {JobState.FAILED: "failed", JobState.CANCELLED: "was cancelled"}


@dataclass(frozen=True, kw_only=True)
class NewReport:
    """A new report."""

    numbers: dict[str, Any]  #: contains no text
    content: dict[str, Any] | None  #: words of the owner and of the model


class ReportStore:
    """Every query about reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, job_id: str) -> Report | None:
        """The job's report, if it has one."""
        with self._database.read() as session:
            return session.get(Report, job_id)

    def of(self, job: Job) -> Report:
        """The report of an ended job. Raises WrongState while it is open, and NotFound without a report."""
        report = self.find(job.id)
        if report is not None:
            return report
        if job.state in OPEN_STATES:
            raise WrongState(
                f"Job {job.id} is {job.state}; its report is made at its end. Ask again when it has ended."
            )
        if job.state is JobState.SUCCEEDED:
            raise NotFound(f"Job {job.id} ended before there were reports. GET /jobs/{job.id} has its losses.")
        raise NotFound(f"Job {job.id} {_ENDED[job.state]}, so there is no report. GET /jobs/{job.id} says more.")


def add_report(session: Session, job: Job, new: NewReport) -> None:
    """Store a job's report, without content if one of its texts was deleted meanwhile."""
    left = session.exec(select(func.count()).where(JobText.job_id == job.id)).one()
    content = new.content if left == job.texts else None
    session.add(Report(job_id=job.id, numbers=new.numbers, content=content))


def forget_content(session: Session, texts: ColumnElement[bool]) -> None:
    """Delete the content of the reports of all jobs that used one of these texts, and of their descendants.

    A later job's model may repeat the text, since it started from an adapter that learned it. SQLite overwrites the
    freed bytes (secure_delete).
    """
    had: Select[Any] = (
        select(col(JobText.job_id).label("id")).join(Text, col(Text.id) == col(JobText.text_id)).where(texts)
    )
    had_it = had.cte("had_it", recursive=True)
    went_on = (
        select(col(Job.id))
        .join(Adapter, col(Adapter.id) == col(Job.parent))
        .join(had_it, col(Adapter.job_id) == had_it.c.id)
    )
    jobs = select(had_it.union(went_on).c.id)
    session.exec(update(Report).where(col(Report.job_id).in_(jobs)).values(content=null()))
