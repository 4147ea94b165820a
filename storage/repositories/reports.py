"""What jobs have learned, for people: numbers, which stay, and content, which goes when a text of the job goes."""

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
    """A report as it is made."""

    numbers: dict[str, Any]  #: holds no text
    content: dict[str, Any] | None  #: the owner's words, and the model's


class ReportStore:
    """Every query about reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, job_id: str) -> Report | None:
        """The job's report, if it has one."""
        with self._database.read() as session:
            return session.get(Report, job_id)

    def of(self, job: Job) -> Report:
        """The report of a job that has ended. Raises WrongState while it is open, and NotFound when it has none."""
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
    """Store a job's report: without its content if one of its texts was deleted while it ran."""
    left = session.exec(select(func.count()).where(JobText.job_id == job.id)).one()
    content = new.content if left == job.texts else None
    session.add(Report(job_id=job.id, numbers=new.numbers, content=content))


def forget_content(session: Session, texts: ColumnElement[bool]) -> None:
    """Drop the content of the reports of all jobs that had one of these texts, and of all that went on from one of
    these.

    A later job's model knows the text from the adapter that it started from, and may have said it. The freed bytes
    are overwritten by SQLite (secure_delete).
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
