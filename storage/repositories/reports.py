"""Reports of jobs: numbers, and content, which is deleted with any text of the job."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, select

from pocketllm.storage.errors import NotFound, NotYet, WrongState
from pocketllm.storage.repositories.base import Repository
from pocketllm.storage.tables import OPEN_STATES, Job, JobState, JobText, Report

_ENDED = {
    JobState.SUCCEEDED: "ended before there were reports",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "was cancelled",
}


@dataclass(frozen=True, kw_only=True)
class NewReport:
    """A new report."""

    numbers: dict[str, Any]  #: contains no text
    content: dict[str, Any] | None  #: words of the owner and of the model


class ReportStore(Repository):
    """Every query about reports."""

    def find(self, job_id: str) -> Report | None:
        """The job's report, if it has one."""
        with self._database.read() as session:
            return session.get(Report, job_id)

    def replace(self, job_id: str, new: NewReport) -> None:
        """Complete the report of a job that has succeeded. Raises NotFound."""
        with self._database.write() as session:
            job, report = session.get(Job, job_id), session.get(Report, job_id)
            if job is None or report is None:
                raise NotFound(f"Job {job_id} has no report.")
            report.numbers, report.content = new.numbers, _allowed(session, job, new)

    def of(self, job: Job) -> Report:
        """The report of a job. Raises NotYet while it is open, and WrongState where it has ended without one."""
        report = self.find(job.id)
        if report is not None:
            return report
        if job.state in OPEN_STATES:
            raise NotYet(f"Job {job.id} is {job.state}; its report is made at its end. Try again when it has ended.")
        raise WrongState(f"Job {job.id} {_ENDED[job.state]}, so there is no report. GET /jobs/{job.id} has details.")


def add_report(session: Session, job: Job, new: NewReport) -> None:
    """Store a job's report."""
    session.add(Report(job_id=job.id, numbers=new.numbers, content=_allowed(session, job, new)))


def _allowed(session: Session, job: Job, new: NewReport) -> dict[str, Any] | None:
    """The report's content; None if one of the job's texts was deleted."""
    left = session.exec(select(func.count()).where(JobText.job_id == job.id)).one()
    return new.content if left == job.texts else None
