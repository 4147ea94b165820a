"""/health, /status, /nights, /models: the daemon's state, readings, last nights, and models."""

import os
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from math import ceil
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import NO_TOKEN, ServicesDep, needs
from pocketllm.api.native.jobs import job_out
from pocketllm.api.native.schemas import Data, JobOut, ModelOut
from pocketllm.daemon.adapter_files import set_aside_problem
from pocketllm.daemon.conditions.gate import Blocker
from pocketllm.daemon.conditions.readings import Reading
from pocketllm.daemon.documents import Body
from pocketllm.daemon.errors import InvalidValue
from pocketllm.daemon.scheduling.nights import Night
from pocketllm.daemon.scheduling.queueing import ENOUGH_SHARE
from pocketllm.daemon.services import Services
from pocketllm.engine.formats.model_folder import list_model_folders
from pocketllm.storage.tables import JobState

router = APIRouter(tags=["status"], route_class=JSONRoute)

#: Of the latest dates, some have no local time.
_MAX_SNOOZE_MINUTES = 366 * 24 * 60


class HealthOut(BaseModel):
    """The daemon is running."""

    status: str = "ok"
    version: str
    pid: int


class ModelStatus(BaseModel):
    """The model that is trained and answers."""

    name: str
    ready: bool
    message: str | None
    adapter: str | None
    withdrawn: Literal["deletion", "rollback", "damage"] | None = Field(description="Why no proven adapter is served.")
    candidate: str | None = Field(description="How an adapter did that is not yet certain; when it is judged again.")


class TrainingStatus(BaseModel):
    """Whether a job may run now, everything that blocks it, and when one probably can."""

    allowed: bool
    blockers: list[Blocker] = Field(description="`until` is when a blocker ends by itself; null if unknown.")
    run_mode: str
    snoozed_until: datetime | None
    expected_at: datetime | None = Field(
        description="When a job can probably run, judging by the last days; null if unknown."
    )
    last_night: str = Field(description="What ran in the night that ends or ended today, and what held a job back.")


class WorkerStatus(BaseModel):
    """The worker process."""

    running: bool
    pid: int | None
    job: str | None


class GeneratorStatus(BaseModel):
    """The generator process."""

    running: bool
    pid: int | None
    unloads_in_seconds: float | None
    backend: Literal["transformers", "llamacpp"] | None = Field(
        description="The decoder of the last answer, or the expected one; null without a model."
    )
    backend_reason: str | None = Field(description="Why llama.cpp is not used.")


class TextStatus(BaseModel):
    """How much text is stored."""

    count: int
    new_words: int
    threshold_words: int = Field(description="New words at which a job is queued by itself.")
    waited_threshold_words: int = Field(description="The same once the oldest of them have waited for seven days.")


class StatusOut(BaseModel, revalidate_instances="always"):
    """The daemon's state. Contains no text."""

    version: str
    uptime_seconds: float
    model: ModelStatus
    training: TrainingStatus
    readings: list[Reading] = Field(
        description="Without a value, `reason` says why; `absent` means that this device has no such sensor."
    )
    worker: WorkerStatus
    generator: GeneratorStatus
    texts: TextStatus
    jobs: dict[JobState, int]
    open_job: JobOut | None = Field(description="The job that runs, or runs next.")


@router.get("/health", openapi_extra=NO_TOKEN)
def health() -> HealthOut:
    """Check that the daemon is running. No token needed."""
    return HealthOut(version=version("pocketllm"), pid=os.getpid())


@router.get("/status", openapi_extra=needs("monitor"))
def status(services: ServicesDep) -> StatusOut:
    """Return the daemon's processes, readings and blockers."""
    scheduler, generator, counts = services.scheduler, services.generator, services.store.texts.counts()
    verdict, left, backend = scheduler.verdict, generator.idle_seconds_left, generator.backend
    now, opened = services.now(), services.store.jobs.open()
    threshold = services.settings.training.new_words
    return StatusOut(
        version=version("pocketllm"),
        uptime_seconds=round(services.uptime_seconds, 1),
        model=_model(services),
        training=TrainingStatus(
            allowed=verdict.allowed,
            blockers=list(verdict.blockers),
            run_mode=services.settings.gate.run_mode,
            snoozed_until=services.store.preferences.snoozed_until(now),
            expected_at=scheduler.expected_at(now),
            last_night=scheduler.nights.last(now),
        ),
        readings=list(scheduler.readings),
        worker=WorkerStatus(
            running=scheduler.worker_pid is not None, pid=scheduler.worker_pid, job=scheduler.running_job
        ),
        generator=GeneratorStatus(
            running=generator.pid is not None,
            pid=generator.pid,
            unloads_in_seconds=None if left is None else round(left, 1),
            backend=backend.name if backend else None,
            backend_reason=backend.reason if backend else None,
        ),
        texts=TextStatus(
            count=counts.texts,
            new_words=counts.new_words,
            threshold_words=threshold,
            waited_threshold_words=ceil(ENOUGH_SHARE * threshold),
        ),
        jobs=services.store.jobs.counts(),
        open_job=job_out(services, opened[0]) if opened else None,
    )


@router.get("/nights", openapi_extra=needs("monitor"))
def nights(services: ServicesDep, days: Annotated[int, Query(ge=1, le=30)] = 14) -> Data[Night]:
    """List the last nights, the present one first: when a job could run, what ran, what ended, and for how long what
    held a job back while nobody used the device. A night lasts from noon to noon of your time; its date is its end's.
    """
    return Data[Night](data=services.scheduler.nights.recent(services.now(), days=days))


class ScreenIn(Body, json_schema_extra={"example": {"on": False}}):
    """The screen's state, as reported by an automation app."""

    on: bool = Field(description="Whether the screen is on.")


def _moment(value: Any) -> Any:
    """A time as RFC 3339 writes it; pydantic would take a number, too."""
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment
    except OverflowError as error:
        raise ValueError("the date is out of range") from error


class SnoozeIn(Body, json_schema_extra={"example": {"minutes": 90}}):
    """How long to snooze."""

    minutes: float | None = Field(None, gt=0, le=_MAX_SNOOZE_MINUTES, description="Minutes from now.")
    until: Annotated[AwareDatetime, BeforeValidator(_moment)] | None = Field(
        None,
        description="Snooze until then. Of both fields, the later time counts. Neither, or a past time, ends it. "
        "At most 366 days from now.",
    )


class SnoozeOut(BaseModel):
    """When the snooze ends; null if there is none."""

    snoozed_until: datetime | None


@router.post("/status/screen", openapi_extra=needs("ingest"))
def screen(services: ServicesDep, body: ScreenIn) -> ScreenIn:
    """Report that the screen went on or off: for automation apps, on phones that do not reveal it otherwise."""
    services.scheduler.screen(body.on, services.now())
    services.wake()
    return body


@router.post("/status/snooze")
def snooze(services: ServicesDep, body: SnoozeIn) -> SnoozeOut:
    """Run no job for a while, and pause a running one, except jobs requested with `now`. An empty object ends the
    snooze.
    """
    now = services.now()
    latest = max(body.until or now, now + timedelta(minutes=body.minutes or 0))
    if latest > now + timedelta(minutes=_MAX_SNOOZE_MINUTES):
        raise InvalidValue(f"until: at most {_MAX_SNOOZE_MINUTES // (24 * 60)} days from now are allowed.", "until")
    until = latest if latest > now else None
    services.store.preferences.snooze(until, now)
    services.wake()
    return SnoozeOut(snoozed_until=until)


@router.get("/models", openapi_extra=needs("generate"))
def models(services: ServicesDep) -> Data[ModelOut]:
    """List the imported models."""
    found = [one.manifest for one in list_model_folders(services.folder.models)]
    return Data(data=[ModelOut(**vars(one), default=one.name == services.settings.model) for one in found])


@router.post("/models/{name}/use")
def use_model(services: ServicesDep, name: str) -> ModelStatus:
    """Switch to another imported model without a restart, and write it into config.toml. Jobs of other models wait, and
    the adapter that it had before is served. 409 if an option or a variable overrides the file.
    """
    services.use_model(name)
    return _model(services)


def _model(services: Services) -> ModelStatus:
    problem, left = services.model_problem(), set_aside_problem(services.folder)
    serving = services.store.adapters.serving(services.settings.model)
    return ModelStatus(
        name=services.settings.model,
        ready=problem is None,
        message=" ".join(filter(None, (problem, services.scheduler.adapter_files.notice, left))) or None,
        adapter=serving.id if serving else None,
        withdrawn=services.store.adapters.withdrawn(services.settings.model),
        candidate=services.scheduler.nights.candidate(services.now()),
    )
