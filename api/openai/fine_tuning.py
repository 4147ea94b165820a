"""/v1/fine_tuning/jobs: the one queue of jobs, as OpenAI's clients fill it and read it."""

import math
from collections.abc import Callable, Iterator
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, StringConstraints

from pocketllm.api.bodies import MAX_SEED, JSONRoute
from pocketllm.api.dependencies import ServicesDep, needs, owner_of, sees
from pocketllm.api.errors import Problem
from pocketllm.api.native.schemas import Identified
from pocketllm.api.openai.files import INBOX, check_own, check_path, examples_in
from pocketllm.api.openai.models import LATEST, name_of, resolve
from pocketllm.api.openai.schemas import Listing, page_of
from pocketllm.api.security.tokens import Scope
from pocketllm.daemon.documents import Body
from pocketllm.daemon.scheduling.planning import BATCH, JobRequest
from pocketllm.daemon.services import Services
from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.tables import BASE, Adapter, Job, JobState
from pocketllm.storage.words import count_words

router = APIRouter(
    prefix="/v1/fine_tuning/jobs", tags=["openai"], dependencies=[Depends(check_path)], route_class=JSONRoute
)

#: The most steps of a job, and how many jobs are read at a time.
_MAX_STEPS, _PAGE = 1_000_000, 100
#: Kinds of events that are more than information.
_LEVELS: dict[str, Literal["warn", "error"]] = {
    "crashed": "warn",
    "reduced": "warn",
    "no report": "warn",
    "failed": "error",
}


_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]


class Hyperparameters(Body, extra="allow"):
    """Hyperparameters. `auto` is best: early stopping ends the job when the validation loss no longer improves."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1e6)] | None = None


_AUTO = dict.fromkeys(Hyperparameters.model_fields, "auto")


class Supervised(Body, extra="allow"):
    """The supported method."""

    hyperparameters: Hyperparameters | None = None


class Method(Body, extra="allow"):
    """The training method. `dpo` and `reinforcement` are not available."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised | None = None


class FineTuningRequest(Body, extra="allow"):
    """A request for a fine-tuning job."""

    model: str = Field(
        description="The model to start from: `pocketllm:latest` (the serving one), `pocketllm:base`, or a fine-tuned "
        "model."
    )
    training_file: str = Field(description="An uploaded file, or `file-inbox`: all texts not yet trained on.")
    validation_file: str | None = Field(None, description="Held-out examples. Default: one training example in ten.")
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    suffix: Annotated[str, StringConstraints(max_length=64, pattern="^[^:/]*$")] | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)] | None = None
    #: Our own, which OpenAI's client passes on in extra_body.
    now: bool = Field(True, description="Do not wait for power, idleness or hours. Safety limits always apply.")

    @property
    def requested_hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters that are not left to us, wherever they stand."""
        supervised = self.method.supervised if self.method else None
        found = (supervised and supervised.hyperparameters) or self.hyperparameters or Hyperparameters()
        return {name: value for name, value in found.model_dump(exclude_none=True).items() if value != "auto"}

    @property
    def warnings(self) -> list[str]:
        """What was asked for and does not apply here."""
        said = [f"{name} is ignored: it is unknown" for name in sorted(self.model_extra or {})]
        if self.training_file == INBOX and self.validation_file is not None:
            said.append(f"validation_file is ignored: {INBOX} holds out one text in ten of its own")
        if self.requested_hyperparameters.get("learning_rate_multiplier", 1) != 1:
            said.append("learning_rate_multiplier is ignored: the daemon sets the learning rate")
        return said


class TuningJob(Identified):
    """A fine-tuning job. `state` and `reasons` are PocketLLM's own fields."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    status: str
    state: JobState
    reasons: list[str] = Field(description="Why the job waits.")
    model: str
    fine_tuned_model: str | None
    error: dict[str, str | None] | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field([], description="Always empty: GET /jobs/ID has the losses.")
    trained_tokens: int | None
    organization_id: str = "pocketllm"
    metadata: dict[str, str] | None
    warnings: list[str] = Field(description="Parameters that were ignored.")


class TuningEvent(Identified):
    """An event of a job."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message"] = "message"
    data: dict[str, str]


@router.post("", openapi_extra=needs("train"))
def create(request: Request, services: ServicesDep, body: FineTuningRequest) -> TuningJob:
    """Request a job that trains on an uploaded file. `model` names the model to start from.

    With `pocketllm:latest`, old texts are mixed in, and the result is served if it proves better, as with any job.
    Apps train on their own files only. Any start but `pocketllm:base` also requires `generate`, since that model may
    know texts of others.
    """
    document = body.model_dump(mode="json", exclude={"now", *(body.model_extra or {})})
    document |= {"warnings": body.warnings, "owner": owner_of(request)}
    check_own(request, services, body.training_file, *filter(None, [body.validation_file]))
    adapter, _ = resolve(services, body.model)
    start = None if body.model == LATEST else adapter or BASE
    if start != BASE and not request.state.scopes & {Scope.GENERATE, Scope.ADMIN}:
        detail = "Starting from a trained model also requires the scope generate. Start from pocketllm:base instead."
        raise Problem(HTTPStatus.FORBIDDEN, detail, param="model", code="out_of_scope")
    texts, requested = _texts(services, body), body.requested_hyperparameters
    epochs, batch = requested.get("n_epochs"), requested.get("batch_size")
    job = services.scheduler.queue.request(
        JobRequest(steps=None if epochs is None else _steps(services, texts or [], epochs, batch), batch=batch),
        seed=body.seed,
        immediate=body.now,
        tuning=document,
        texts=texts,
        start_from=start,
        now=services.now(),
    )
    services.wake()
    return _out(services, job)


@router.get("", openapi_extra=needs("train"))
def list_jobs(
    request: Request, services: ServicesDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> Listing[TuningJob]:
    """List jobs, newest first."""
    check_own(request, services, *filter(None, [after]))

    def behind(last: str | None) -> Iterator[Job]:
        while rows := services.store.jobs.page(after=last, limit=_PAGE):
            yield from (row for row in rows if sees(request, row.owner))
            last = rows[-1].id

    found = list(islice(behind(after and _job_id(after)), limit + 1))
    return Listing[TuningJob].of([_out(services, job) for job in found[:limit]], has_more=len(found) > limit)


@router.get("/{job_id}", openapi_extra=needs("train"))
def get(services: ServicesDep, job_id: str) -> TuningJob:
    """Return one job."""
    return _out(services, _job(services, job_id))


@router.post("/{job_id}/cancel", openapi_extra=needs("train"))
def cancel(services: ServicesDep, job_id: str) -> TuningJob:
    """Cancel a job. Its worker stops at once, and its progress is deleted."""
    return _changed(services, job_id, services.scheduler.cancel)


@router.post("/{job_id}/pause", openapi_extra=needs("train"))
def pause(services: ServicesDep, job_id: str) -> TuningJob:
    """Pause a job until you resume it. Its progress is kept, and its status is `queued`."""
    return _changed(services, job_id, services.scheduler.pause)


@router.post("/{job_id}/resume", openapi_extra=needs("train"))
def resume(services: ServicesDep, job_id: str) -> TuningJob:
    """Resume a paused job."""
    return _changed(services, job_id, services.scheduler.resume)


@router.get("/{job_id}/events", openapi_extra=needs("train"))
def events(
    services: ServicesDep, job_id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 20
) -> Listing[TuningEvent]:
    """List a job's events, newest first."""
    found = [
        TuningEvent(
            id=f"ftevent-{row.id}",
            created_at=int(row.at.timestamp()),
            level=_LEVELS.get(row.kind, "info"),
            message=f"{row.kind}: {row.message}",
            data={"kind": row.kind},
        )
        for row in reversed(services.store.jobs.events(_job(services, job_id).id))
    ]
    return page_of(found, after=after, limit=limit)


def _out(services: Services, job: Job) -> TuningJob:
    """A job; also one that was asked for otherwise, or began by itself."""
    said = job.tuning or {"model": LATEST, "training_file": INBOX}
    adapter, finished = _adapter(services, job), job.finished_at
    hyperparameters = _AUTO | FineTuningRequest.model_validate(said).requested_hyperparameters
    steps = services.store.step_log.steps(job.id) if job.state is JobState.SUCCEEDED else None
    failed = {"code": "job_failed", "message": job.error or "", "param": None}
    return TuningJob(
        id=f"ft{job.id}",
        created_at=int(job.created_at.timestamp()),
        finished_at=None if finished is None else int(finished.timestamp()),
        # There is no status for a job that is paused: it waits, and `state` says more.
        status=str(JobState.QUEUED if job.state is JobState.PAUSED else job.state),
        state=job.state,
        reasons=job.reasons,
        model=said["model"],
        fine_tuned_model=name_of(adapter) if adapter else None,
        error=failed if job.state is JobState.FAILED else None,
        hyperparameters=hyperparameters,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        seed=job.seed,
        training_file=said["training_file"],
        validation_file=said.get("validation_file"),
        trained_tokens=None if steps is None else sum(step.tokens for step in steps),
        metadata=said.get("metadata"),
        warnings=said.get("warnings", []),
    )


def _job_id(tuning_id: str) -> str:
    return tuning_id.replace("ftjob-", "job-", 1)


def _job(services: Services, tuning_id: str) -> Job:
    return services.store.jobs.get(_job_id(tuning_id), abbreviated=False)


def _adapter(services: Services, job: Job) -> Adapter | None:
    """What the job has made; None before, and when it was deleted."""
    try:
        return services.store.adapters.get(job.adapter) if job.adapter else None
    except NotFound:
        return None


def _changed(services: Services, tuning_id: str, change: Callable[..., Job]) -> TuningJob:
    job = change(_job_id(tuning_id), services.now())
    services.wake()
    return _out(services, job)


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
