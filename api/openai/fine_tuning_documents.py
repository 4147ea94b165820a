"""Jobs as the documents that OpenAI's clients take back."""

from pocketllm.api.native.schemas.jobs import seconds_left
from pocketllm.api.openai.files import results_of
from pocketllm.api.openai.fine_tuning_schemas import (
    INBOX,
    LEVELS,
    STATUSES,
    Checkpoint,
    FineTuningRequest,
    Hyperparameters,
    TuningError,
    TuningEvent,
    TuningJob,
    seconds,
)
from pocketllm.api.openai.models import LATEST, name_of
from pocketllm.daemon.services import Services
from pocketllm.storage.errors import NotFound
from pocketllm.storage.tables import Adapter, Evaluation, Event, Job, JobState

#: In place of the "job-" of a job's id.
PREFIX = "ftjob-"
_AUTO = Hyperparameters(n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto")


def of_job(services: Services, job: Job) -> TuningJob:
    """A job; also one that was asked for otherwise, or began by itself."""
    said = job.tuning or {"model": LATEST, "training_file": INBOX}
    adapter = _adapter(services, job)
    left = seconds_left(job, services.store.step_log.progress(job.id))
    asked = FineTuningRequest.model_validate(said).chosen_hyperparameters
    hyperparameters = _AUTO.model_copy(update=asked.model_dump(exclude_none=True))
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters.model_dump()}}
    return TuningJob(
        id=_id(job),
        created_at=int(job.created_at.timestamp()),
        finished_at=seconds(job.finished_at),
        estimated_finish=None if left is None else int(services.now().timestamp() + left),
        status=STATUSES[job.state],
        state=job.state,
        reasons=job.reasons,
        model=said["model"],
        fine_tuned_model=name_of(adapter) if adapter else None,
        error=TuningError(code="job_failed", message=job.error or "") if job.state is JobState.FAILED else None,
        hyperparameters=hyperparameters,
        method=method,
        seed=job.seed,
        training_file=said["training_file"],
        validation_file=said.get("validation_file"),
        result_files=results_of(job),
        trained_tokens=_tokens(services, job) if job.state is JobState.SUCCEEDED else None,
        metadata=said.get("metadata"),
        warnings=said.get("warnings", []),
    )


def events_of(services: Services, job: Job) -> list[TuningEvent]:
    """What happened to a job and what was measured, newest first."""
    happened = [(row.at, _happened(row)) for row in services.store.jobs.events(job.id)]
    measured = [(row.at, _measured(row, job)) for row in services.store.step_log.evaluations(job.id)]
    in_order = sorted(happened + measured, key=lambda dated: dated[0])
    return [event for _, event in reversed(in_order)]


def checkpoints_of(services: Services, job: Job) -> list[Checkpoint]:
    """The models that a job has made."""
    adapter = _adapter(services, job)
    if adapter is None:
        return []
    progress = services.store.step_log.progress(job.id)
    return [
        Checkpoint(
            id=adapter.id.replace("adapter-", "ftckpt-", 1),
            created_at=int(adapter.created_at.timestamp()),
            fine_tuned_model_checkpoint=name_of(adapter),
            fine_tuning_job_id=_id(job),
            step_number=progress.step,
            metrics={
                "step": progress.step,
                "train_loss": progress.loss,
                "valid_loss": adapter.held_out_loss_now,
                "full_valid_loss": adapter.held_out_loss_now,
            },
        )
    ]


def _happened(row: Event) -> TuningEvent:
    return TuningEvent(
        id=f"ftevent-{row.id}",
        created_at=int(row.at.timestamp()),
        level=LEVELS.get(row.kind, "info"),
        message=f"{row.kind}: {row.message}",
        type="message",
        data={"kind": row.kind},
    )


def _measured(row: Evaluation, job: Job) -> TuningEvent:
    return TuningEvent(
        id=f"ftevent-{job.id}-{row.step}",
        created_at=int(row.at.timestamp()),
        level="info",
        message=f"Step {row.step}/{job.total_steps}: held-out loss {row.loss:.4f}",
        type="metrics",
        data={"step": row.step, "total_steps": job.total_steps, "valid_loss": row.loss},
    )


def _id(job: Job) -> str:
    return job.id.replace("job-", PREFIX, 1)


def _adapter(services: Services, job: Job) -> Adapter | None:
    """What the job has made; None before, and when it was deleted."""
    try:
        return services.store.adapters.get(job.adapter) if job.adapter else None
    except NotFound:
        return None


def _tokens(services: Services, job: Job) -> int:
    return sum(step.tokens for step in services.store.step_log.steps(job.id))
