"""Fine-tuning jobs as OpenAI's clients ask for them and take them back. One is the same job that GET /jobs shows."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from pocketllm.api.bodies import MAX_SEED
from pocketllm.api.native.schemas.jobs import Identified
from pocketllm.api.openai.files import INBOX
from pocketllm.daemon.documents import Body
from pocketllm.storage.tables import JobState

_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]


class Hyperparameters(Body, extra="allow"):
    """Hyperparameters. `auto` is best: early stopping ends the job when the validation loss no longer improves."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1e6)] | None = None


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
