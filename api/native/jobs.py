"""/jobs: the queue, plans, cancelling and pausing; a job's report."""

import asyncio
import time
from dataclasses import asdict
from http import HTTPStatus
from math import ceil
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import MAX_SEED, JSONRoute
from pocketllm.api.dependencies import JobId, ServicesDep, may_monitor, needs
from pocketllm.api.native.schemas import (
    EventOut,
    JobDetailOut,
    JobOut,
    JobProgressOut,
    Page,
    PlanOut,
    ReportNumbersOut,
    ReportOut,
    RunOut,
    seconds_left,
)
from pocketllm.api.responses import PrettyJSONResponse
from pocketllm.daemon.documents import Body
from pocketllm.daemon.scheduling.planning import JobRequest, RequestedMethod
from pocketllm.daemon.services import Services
from pocketllm.engine.planning.memory_model import Mode
from pocketllm.storage.errors import NotYet
from pocketllm.storage.tables import OPEN_STATES, Job, JobState

router = APIRouter(tags=["jobs"], route_class=JSONRoute)

#: How often the database is read while a client waits: the worker's process writes to it, too.
_POLL_SECONDS = 0.5


class JobIn(Body, json_schema_extra={"example": {"steps": 60, "now": False}}):
    """The job to request; every field is optional."""

    steps: int | None = Field(None, ge=1, le=1_000_000, description="Default: the setting training.steps.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Default: random.")
    now: bool = Field(True, description="Do not wait for power, idleness or hours. Safety limits always apply.")
    # Override the settings of the same names.
    mode: Mode | None = Field(None, description="What to train; default: the setting training.mode.")
    method: RequestedMethod | None = Field(None, description="Training method; default: the setting training.method.")
    batch: int | None = Field(None, ge=1, le=1024, description="Default: the setting training.batch.")
    probes: int | None = Field(None, ge=1, le=64, description="Default: the setting training.probes.")

    def requested(self) -> JobRequest:
        """As a JobRequest."""
        return JobRequest(steps=self.steps, mode=self.mode, method=self.method, batch=self.batch, probes=self.probes)


@router.post("/jobs", status_code=HTTPStatus.ACCEPTED)
def request_job(
    request: Request,
    services: ServicesDep,
    response: Response,
    idempotency_key: Annotated[
        str | None, Header(pattern="^[!-~]{1,255}$", description="The same key returns the job that it created.")
    ] = None,
    body: JobIn | None = None,
) -> JobOut:
    """Request a job. It starts within seconds if the conditions allow it; otherwise `reasons` says why it waits.

    A request without parameters continues the open job on new text, if there is one, even if it is paused.
    A job that does not fit into training.memory_bytes is refused; the error names the smallest sufficient value.
    """
    asked = body or JobIn()
    job = services.scheduler.queue.request(
        asked.requested(),
        seed=asked.seed,
        immediate=asked.now,
        now=services.now(),
        # Keys are per caller; a caller's name has no newline.
        request_key=None if idempotency_key is None else f"{request.state.caller}\n{idempotency_key}",
    )
    services.wake()
    response.headers["Location"] = f"/jobs/{job.id}"
    return job_out(services, job)


@router.post("/jobs/plan")
def plan_job(services: ServicesDep, body: JobIn | None = None) -> PlanOut:
    """Predict a job's memory and time. Nothing is queued."""
    planned, counts = services.scheduler.queue.plan((body or JobIn()).requested()), services.store.texts.counts()
    return PlanOut.of(planned, model=services.settings.model, texts=counts.texts, new_words=counts.new_words)


@router.get("/jobs", response_model=Page[JobOut] | Page[JobProgressOut], openapi_extra=needs("monitor"))
def list_jobs(
    request: Request, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=200)] = 20, after: str | None = None
) -> Response:
    """List jobs, newest first. No token needed; reasons and errors, which may contain your words or show that somebody
    is there, require `monitor`.
    """
    rows = services.store.jobs.page(after=after, limit=limit + 1)
    found = [job_out(services, row) for row in rows]
    page: Page[JobProgressOut] | Page[JobOut] = Page[JobOut].of(found, limit)
    if not may_monitor(request):
        page = Page[JobProgressOut].of([JobProgressOut(**dict(job)) for job in found], limit)
    # Serialized here: FastAPI would validate and serialize the page in another thread.
    return PrettyJSONResponse(page.model_dump(mode="json"))


async def _wait_for_end(
    request: Request,
    job_id: JobId,
    services: ServicesDep,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the job's end.")] = 0,
) -> None:
    """Wait until the job has ended, the time is over, the client has gone, or the daemon ends."""
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0 and not services.ending.is_set():
        job = await run_in_threadpool(services.store.jobs.get, job_id)
        if job.state not in OPEN_STATES or await request.is_disconnected():
            break
        await asyncio.sleep(min(left, _POLL_SECONDS))


@router.get("/jobs/{job_id}", dependencies=[Depends(_wait_for_end)], openapi_extra=needs("monitor"))
def get_job(job_id: JobId, services: ServicesDep) -> JobDetailOut:
    """Return a job with its settings, losses, events and results in numbers.

    With `wait`, it is returned as soon as it has ended, or after so many seconds.
    """
    store = services.store
    job, report = store.jobs.get(job_id), store.reports.find(job_id)
    return JobDetailOut(
        **dict(job_out(services, job)),
        settings=job.settings,
        plan=job.plan,
        curve=store.step_log.curve(job_id),
        report=ReportNumbersOut(**report.numbers) if report else None,
        events=[EventOut.model_validate(row, from_attributes=True) for row in store.jobs.events(job_id)],
        runs=[RunOut.of(row) for row in store.runs.of_job(job_id)],
    )


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: JobId, services: ServicesDep) -> JobOut:
    """Cancel a job. Its worker stops at once, and its progress is deleted."""
    return job_out(services, services.scheduler.cancel(job_id, services.now()))


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: JobId, services: ServicesDep) -> JobOut:
    """Pause a job until you resume it. Its worker stops at once, and its progress is kept."""
    return job_out(services, services.scheduler.pause(job_id, services.now()))


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: JobId, services: ServicesDep) -> JobOut:
    """Resume a paused job; it continues when the conditions allow it."""
    job = services.scheduler.resume(job_id, services.now())
    services.wake()
    return job_out(services, job)


def job_out(services: Services, job: Job) -> JobOut:
    """A job and its progress."""
    progress = services.store.step_log.progress(job.id)
    left = seconds_left(job, progress)
    nights = ceil(left / services.scheduler.usual_night) if left and job.state is not JobState.RUNNING else None
    return JobOut(**dict(job) | asdict(progress), eta_seconds=left, eta_nights=nights)


@router.get("/jobs/{job_id}/report")
def get_report(job_id: JobId, services: ServicesDep) -> ReportOut:
    """Return a job's report: the verdict, the loss curve, the words whose probability rose most, both models'
    completions of held-out text, and the verbatim recall of training text.

    409 while the job is open or its report is being made, or if it ended without a report.
    """
    store = services.store
    report = store.reports.of(store.jobs.get(job_id))
    if report.content is None and services.scheduler.running_job == job_id:
        raise NotYet(f"The report of job {job_id} is being made. Try again in a few seconds.")
    content = report.content or {"words": None, "completions": None}
    return ReportOut(job=job_id, curve=store.step_log.curve(job_id), **report.numbers, **content)
