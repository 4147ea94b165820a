"""/jobs/ID/report: what a job has learned, with the owner's words and the model's."""

from fastapi import APIRouter

from pocketllm.api.dependencies import Context
from pocketllm.api.native.schemas.reports import ReportOut, whole_report

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}/report")
def get_report(job_id: str, services: Context) -> ReportOut:
    """What a job has learned: the judgement, the loss curve, the words whose probability rose most, both models'
    completions of held-out text, and how much of the taught text comes out word for word.

    409 while the job is open; 404 when it has no report.
    """
    store = services.store
    report = store.reports.of(store.jobs.get(job_id))
    return whole_report(report, store.journal.curve(job_id))
