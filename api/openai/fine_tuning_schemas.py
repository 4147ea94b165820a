"""Fine-tuning jobs as OpenAI's clients ask for them and take them back. One is the same job that GET /jobs shows."""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pocketllm.api.bodies import MAX_SEED, Body
from pocketllm.api.native.schemas.jobs import Identified
from pocketllm.storage.tables import JobState

Number = TypeVar("Number", int, float)

#: All texts as a file that is always there. A job that is to learn from it learns what is new, as jobs do.
INBOX = "file-inbox"

#: There is no status for a job that is paused: it waits, and `state` says more.
STATUSES = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSED: "queued",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
#: Kinds of events that are more than information.
LEVELS: dict[str, Literal["warn", "error"]] = {
    "crashed": "warn",
    "reduced": "warn",
    "no report": "warn",
    "failed": "error",
}


class Hyperparameters(Body):
    """Hyperparameters. `auto` is best: early stopping ends the job when the validation loss no longer improves."""

    model_config = ConfigDict(extra="allow")

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1e6)] | None = None


class Supervised(Body):
    """The supported method."""

    model_config = ConfigDict(extra="allow")

    hyperparameters: Hyperparameters | None = None


class Method(Body):
    """The training method. `dpo` and `reinforcement` are not available."""

    model_config = ConfigDict(extra="allow")

    type: Literal["supervised"] = "supervised"
    supervised: Supervised | None = None


class FineTuningRequest(Body):
    """A request for a fine-tuning job."""

    model_config = ConfigDict(extra="allow")

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
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: Annotated[list[Any], Field(max_length=100)] | None = None
    #: Our own, which OpenAI's client passes on in extra_body.
    now: bool = Field(True, description="Do not wait for power, idleness or hours. Safety limits always apply.")

    @property
    def chosen_hyperparameters(self) -> Hyperparameters:
        """The hyperparameters, wherever they stand."""
        supervised = self.method.supervised if self.method else None
        return (supervised and supervised.hyperparameters) or self.hyperparameters or Hyperparameters()

    @property
    def warnings(self) -> list[str]:
        """What was asked for and does not apply here."""
        said = [f"{name} is ignored: it is unknown" for name in sorted(self.model_extra or {})]
        if self.training_file == INBOX and self.validation_file is not None:
            said.append(f"validation_file is ignored: {INBOX} holds out one text in ten of its own")
        if self.chosen_hyperparameters.learning_rate_multiplier not in (None, "auto", 1):
            said.append("learning_rate_multiplier is ignored: the daemon sets the learning rate")
        return said + ["integrations are ignored: no other service is notified"] * bool(self.integrations)


class TuningError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class TuningJob(Identified):
    """A fine-tuning job. `state` and `reasons` are PocketLLM's own fields."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: str
    state: JobState
    reasons: list[str] = Field(description="Why the job waits.")
    model: str
    fine_tuned_model: str | None
    error: TuningError | None
    hyperparameters: Hyperparameters
    method: dict[str, Any]
    seed: int
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    organization_id: str = "pocketllm"
    metadata: dict[str, str] | None
    integrations: list[Any] = Field(default_factory=list)
    warnings: list[str] = Field(description="Parameters that were ignored.")


class TuningEvent(Identified):
    """An event of a job, or a measurement of its loss."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class Checkpoint(Identified):
    """A model that a job produced."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float | None]


def seconds(moment: datetime | None) -> int | None:
    """A time as OpenAI writes it."""
    return None if moment is None else int(moment.timestamp())


def explicit(value: Number | Literal["auto"] | None) -> Number | None:
    """A hyperparameter that is not left to us."""
    return None if value == "auto" else value
