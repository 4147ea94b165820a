"""/health, /status, /models: what the daemon is, sees and has."""

import os
from datetime import datetime
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from pocketllm.api.context import Context
from pocketllm.api.schemas import ModelOut
from pocketllm.daemon.services import Services
from pocketllm.mezo.native import list_native
from pocketllm.storage.tables import JobState

router = APIRouter(tags=["status"])


class HealthOut(BaseModel):
    """The daemon is there."""

    status: str = "ok"
    version: str
    pid: int


class ModelStatus(BaseModel):
    """The model that learns and answers."""

    name: str
    ready: bool
    message: str | None
    adapter: str | None


class BlockerOut(BaseModel):
    """One thing that keeps jobs from running."""

    name: str
    message: str
    value: bool | float | None
    threshold: float | None
    unit: str | None
    since: datetime


class TrainingStatus(BaseModel):
    """Whether a job may run now."""

    allowed: bool
    blockers: list[BlockerOut]


class ReadingOut(BaseModel):
    """What a sensor sees. Without a value `reason` says why: unknown, or `absent` from this machine."""

    name: str
    value: bool | float | None
    unit: str | None
    source: str
    at: datetime
    reason: str | None
    absent: bool


class WorkerStatus(BaseModel):
    """The process that learns."""

    running: bool
    pid: int | None
    job: str | None


class GeneratorStatus(BaseModel):
    """The process that answers."""

    running: bool
    pid: int | None
    unloads_in_seconds: float | None


class TextStatus(BaseModel):
    """How much text there is."""

    count: int
    new_words: int
    threshold_words: int


class StatusOut(BaseModel):
    """Everything at a glance; holds no content."""

    version: str
    uptime_seconds: float
    model: ModelStatus
    training: TrainingStatus
    readings: list[ReadingOut]
    worker: WorkerStatus
    generator: GeneratorStatus
    texts: TextStatus
    jobs: dict[JobState, int]


class ListOut(BaseModel):
    """A list that is short enough for one page."""

    data: list[Any]


@router.get("/health")
def health() -> HealthOut:
    """Whether the daemon is there. Open without a token."""
    return HealthOut(version=version("pocketllm"), pid=os.getpid())


@router.get("/status")
def status(services: Context) -> StatusOut:
    """What runs, what the sensors see, and everything that keeps jobs from running. Open without a token."""
    scheduler, generator, counts = services.scheduler, services.generator, services.store.texts.counts()
    verdict, left = scheduler.verdict, generator.idle_seconds_left
    return StatusOut(
        version=version("pocketllm"),
        uptime_seconds=round((services.now() - services.started_at).total_seconds(), 1),
        model=_model(services),
        training=TrainingStatus(
            allowed=verdict.allowed,
            blockers=[BlockerOut.model_validate(b, from_attributes=True) for b in verdict.blockers],
        ),
        readings=[ReadingOut.model_validate(r, from_attributes=True) for r in scheduler.readings],
        worker=WorkerStatus(
            running=scheduler.worker_pid is not None, pid=scheduler.worker_pid, job=scheduler.running_job
        ),
        generator=GeneratorStatus(
            running=generator.pid is not None,
            pid=generator.pid,
            unloads_in_seconds=None if left is None else round(left, 1),
        ),
        texts=TextStatus(
            count=counts.texts, new_words=counts.new_words, threshold_words=services.settings.training.new_words
        ),
        jobs=services.store.jobs.counts(),
    )


@router.get("/models")
def models(services: Context) -> ListOut:
    """The imported models."""
    return ListOut(
        data=[
            ModelOut(
                name=model.manifest.name,
                architecture=model.manifest.architecture,
                parameters=model.manifest.parameters,
                weights_bytes=model.manifest.weights_bytes,
                license=model.manifest.license,
                source=model.manifest.source,
                default=model.manifest.name == services.settings.model,
            )
            for model in list_native(services.folder.models)
        ]
    )


def _model(services: Services) -> ModelStatus:
    problem = services.model_problem()
    serving = services.store.adapters.serving(services.settings.model)
    return ModelStatus(
        name=services.settings.model,
        ready=problem is None,
        message=problem,
        adapter=serving.id if serving else None,
    )
