"""/v1/fine_tuning/jobs: the one queue of jobs, as OpenAI's clients fill it and look at it."""

import math
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import ServicesDep, app_of, json_only, owner_of
from pocketllm.api.errors import Problem
from pocketllm.api.native.texts import check_quota
from pocketllm.api.openai import fine_tuning_documents as documents
from pocketllm.api.openai.files import check_own, check_path, jobs_behind
from pocketllm.api.openai.fine_tuning_schemas import (
    INBOX,
    Checkpoint,
    FineTuningRequest,
    TuningEvent,
    TuningJob,
    explicit,
)
from pocketllm.api.openai.models import LATEST, resolve
from pocketllm.api.openai.schemas import Listing, page_of
from pocketllm.api.openai.training_file import FINE_TUNE, examples_in
from pocketllm.api.security.tokens import Scope
from pocketllm.daemon.scheduling.planning import BATCH, JobRequest
from pocketllm.daemon.services import Services
from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories.texts import NewText, count_words
from pocketllm.storage.tables import BASE, Job

router = APIRouter(
    prefix="/v1/fine_tuning/jobs", tags=["openai"], dependencies=[Depends(check_path)], route_class=JSONRoute
)

#: The most steps of a job.
_MAX_STEPS = 1_000_000
#: OpenAI's client says with this that it sends a request once more. It sends no key that would tell them apart.
_SENT_AGAIN = "x-stainless-retry-count"
_AGAIN_WITHIN = timedelta(minutes=15)


@router.post("", dependencies=[Depends(json_only)])
def create(request: Request, services: ServicesDep, body: FineTuningRequest) -> TuningJob:
    """Request a job that trains on an uploaded file. `model` names the model to start from.

    With `pocketllm:latest`, old texts are mixed in, and the result is served if it proves better, as with any job.
    Apps train on their own files only. Any start but `pocketllm:base` also requires `generate`, since that model may
    know texts of others.
    """
    document = body.model_dump(mode="json", exclude={"now", "integrations"})
    document |= {"warnings": body.warnings, "owner": owner_of(request)}
    check_own(request, services, body.training_file, *filter(None, [body.validation_file]))
    if request.headers.get(_SENT_AGAIN, "0") != "0" and (job := _same(services, document)):
        return documents.of_job(services, job)
    adapter, _ = resolve(services, body.model)
    start = None if body.model == LATEST else adapter or BASE
    if start != BASE and not request.state.scopes & {Scope.GENERATE, Scope.ADMIN}:
        detail = "Starting from a trained model also requires the scope generate. Start from pocketllm:base instead."
        raise Problem(HTTPStatus.FORBIDDEN, detail, param="model", code="out_of_scope")
    asked, texts = body.chosen_hyperparameters, _texts(services, body)
    if (app := app_of(request)) is not None:
        check_quota(services, app, len(texts or []))
    epochs, batch = explicit(asked.n_epochs), explicit(asked.batch_size)
    job = services.scheduler.request(
        JobRequest(steps=None if epochs is None else _steps(services, texts or [], epochs, batch), batch=batch),
        seed=body.seed,
        immediate=body.now,
        tuning=document,
        texts=texts,
        start_from=start,
        now=services.now(),
    )
    services.wake()
    return documents.of_job(services, job)


@router.get("")
def list_jobs(
    request: Request, services: ServicesDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> Listing[TuningJob]:
    """List jobs, newest first; with `metadata[KEY]=VALUE`, only those with this metadata."""
    filters = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    found: list[Job] = []
    for job in jobs_behind(request, services, None if after is None else _job_id(after)):
        said = (job.tuning or {}).get("metadata") or {}
        if filters.items() <= said.items():
            found.append(job)
        if len(found) > limit:
            break
    shown = [documents.of_job(services, job) for job in found[:limit]]
    return Listing[TuningJob].of(shown, has_more=len(found) > limit)


@router.get("/{job_id}")
def get(services: ServicesDep, job_id: str) -> TuningJob:
    """Return one job."""
    return documents.of_job(services, _job(services, job_id))


@router.post("/{job_id}/cancel")
def cancel(services: ServicesDep, job_id: str) -> TuningJob:
    """Cancel a job. Its worker stops at once, and its progress is deleted."""
    return _changed(services, job_id, services.scheduler.cancel)


@router.post("/{job_id}/pause")
def pause(services: ServicesDep, job_id: str) -> TuningJob:
    """Pause a job until you resume it. Its progress is kept, and its status is `queued`."""
    return _changed(services, job_id, services.scheduler.pause)


@router.post("/{job_id}/resume")
def resume(services: ServicesDep, job_id: str) -> TuningJob:
    """Resume a paused job."""
    return _changed(services, job_id, services.scheduler.resume)


@router.get("/{job_id}/events")
def events(
    services: ServicesDep, job_id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 20
) -> Listing[TuningEvent]:
    """List a job's events and measurements, newest first."""
    return page_of(documents.events_of(services, _job(services, job_id)), after=after, limit=limit)


@router.get("/{job_id}/checkpoints")
def checkpoints(
    services: ServicesDep, job_id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 10
) -> Listing[Checkpoint]:
    """List the models that a job produced: one, once it has succeeded."""
    return page_of(documents.checkpoints_of(services, _job(services, job_id)), after=after, limit=limit)


def _job_id(tuning_id: str) -> str:
    return tuning_id.replace(documents.PREFIX, "job-", 1)


def _job(services: Services, tuning_id: str) -> Job:
    return services.store.jobs.get(_job_id(tuning_id))


def _changed(services: Services, tuning_id: str, change: Callable[..., Job]) -> TuningJob:
    job = change(_job_id(tuning_id), services.now())
    services.wake()
    return documents.of_job(services, job)


def _same(services: Services, document: dict[str, Any]) -> Job | None:
    """The youngest job of which the same was said a while ago: the client has not seen the answer to that."""
    now, found = services.now(), services.store.jobs.open()
    same = [job for job in found if job.tuning == document and timedelta(0) <= now - job.created_at < _AGAIN_WITHIN]
    return max(same, key=lambda job: job.created_at, default=None)


def _texts(services: Services, body: FineTuningRequest) -> list[NewText] | None:
    """What the job is given to learn and to measure with; None: all texts that are new."""
    if body.training_file == INBOX:
        return None
    measured = body.validation_file
    # Without a file to measure with the texts' own ids say which are kept out.
    texts = _of_file(services, body.training_file, "training_file", held_out=None if measured is None else False)
    return texts if measured is None else texts + _of_file(services, measured, "validation_file", held_out=True)


def _of_file(services: Services, file_id: str, param: str, *, held_out: bool | None) -> list[NewText]:
    try:
        file = services.store.files.get(file_id)
    except NotFound as error:
        raise Problem(HTTPStatus.NOT_FOUND, str(error), param=param) from error
    if file.purpose != FINE_TUNE:
        detail = f"{param}: {file_id} has the purpose {file.purpose}. Upload it with the purpose {FINE_TUNE}."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param=param)
    # A text that stands in the training file is not also measured with: the sources differ, the ids do, too.
    examples = examples_in(file.data, source=file.id, max_bytes=services.settings.max_text_bytes)
    return [example.new(held_out=held_out) for example in examples]


def _steps(services: Services, texts: list[NewText], epochs: int, batch: int | None) -> int:
    """The number of steps for this number of epochs; plain texts are cut into blocks."""
    training = services.settings.training
    block_words = max(1, training.block_tokens * 3 // 4)
    rows = sum(
        1 if text.completion is not None or text.messages else count_words(text.text) / block_words for text in texts
    )
    steps = math.ceil(epochs * max(1.0, rows) / (batch or training.batch or BATCH))
    return min(_MAX_STEPS, steps)
