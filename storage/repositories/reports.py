"""Reports of jobs: numbers, and content, which is deleted with any text of the job."""

from sqlalchemy import func
from sqlmodel import Session, select

from pocketllm.storage.errors import NotFound, NotYet, WrongState
from pocketllm.storage.repositories.base import Repository
from pocketllm.storage.tables import OPEN_STATES, Job, JobState, JobText, Report


class ReportStore(Repository):
    """Every query about reports."""

    def find(self, job_id: str) -> Report | None:
        """The job's report, if it has one."""
        with self._database.read() as session:
            return session.get(Report, job_id)

    def replace(self, report: Report) -> None:
        """Complete the report of a job that has succeeded. Raises NotFound."""
        with self._database.write() as session:
            if session.get(Report, report.job_id) is None:
                raise NotFound(f"Job {report.job_id} has no report.")
            store_report(session, report)

    def of(self, job: Job) -> Report:
        """The report of a job. Raises NotYet while it is open, and WrongState where it has ended without one."""
        report = self.find(job.id)
        if report is not None:
            return report
        if job.state in OPEN_STATES:
            raise NotYet(f"Job {job.id} is {job.state}; its report is made at its end. Try again when it has ended.")
        how = "failed" if job.state is JobState.FAILED else "was cancelled"
        raise WrongState(f"Job {job.id} {how}, so there is no report. GET /jobs/{job.id} has details.")


def store_report(session: Session, report: Report) -> None:
    """Store a report, without its content if one of the job's texts was deleted."""
    texts = session.exec(select(Job.texts).where(Job.id == report.job_id)).one()
    if session.exec(select(func.count()).where(JobText.job_id == report.job_id)).one() != texts:
        report.content = None
    session.merge(report)
