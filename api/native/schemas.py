"""The documents that PocketLLM's own routes give. Loss in nats per token, sizes in bytes, durations in seconds."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, BaseModel, Field

from pocketllm.daemon.scheduling.planning import Alternative, Planned
from pocketllm.engine.planning.memory_model import Method, Mode, Prediction
from pocketllm.storage.repositories.step_log import Curve, Progress
from pocketllm.storage.tables import OPEN_STATES, Job, JobState, Kind, Outcome, Requester, RunWindow, Text

Item = TypeVar("Item", bound="Identified")
Row = TypeVar("Row")
Rounded = Annotated[float, AfterValidator(lambda value: round(value, 4))]


class Identified(BaseModel):
    """Anything with an id."""

    id: str


class Data(BaseModel, Generic[Row]):
    """A complete list."""

    data: list[Row]


class Page(BaseModel, Generic[Item]):
    """One page of a list. Pass `next` as `after` to get the next page."""

    data: list[Item]
    has_more: bool
    next: str | None

    @classmethod
    def of(cls, items: list[Item], limit: int) -> Self:
        """A page of at most `limit` items, from a list that holds one more if there is more."""
        shown, more = items[:limit], len(items) > limit
        return cls(data=shown, has_more=more, next=shown[-1].id if more else None)


class TextOut(Identified):
    """A stored text."""

    source: str
    kind: Kind
    text: str = Field(description="The text; for a completion, its prompt; for a chat, `messages` in readable form.")
    completion: str | None
    label: str | None
    messages: list[dict[str, Any]] | None = Field(description="The messages of a chat; null for other texts.")
    words: int
    held_out: bool = Field(description="Used for evaluation, not for training.")
    learned: bool = Field(description="Whether a job of the model in use has learned it.")
    file: str | None = Field(description="A file of a watched folder that has it.")
    created_at: datetime

    @classmethod
    def of(cls, row: Text, files: Mapping[str, str]) -> Self:
        """From its row, and the files of texts by their ids."""
        more = {"kind": row.kind, "learned": row.learned_in is not None, "file": files.get(row.id)}
        return cls(**row.model_dump(), **more)


class AddedOut(BaseModel):
    """The result of adding texts."""

    ids: list[str]
    created: int
    duplicates: int


class ComparisonOut(BaseModel):
    """Two losses on the same held-out text, in nats per token."""

    before: float
    now: float
    reduction: float = Field(description="`before` minus `now`; positive is better.")
    standard_error: float | None = Field(description="Standard error of the reduction; null for a single text.")
    texts: int | None = Field(None, description="Texts, or stretches of a single text; null in older reports.")


class VerdictOut(BaseModel):
    """The evaluation on held-out text, which decides whether the adapter is served."""

    outcome: Outcome
    overall: ComparisonOut = Field(
        description="Compared with what was served before, on new text; of an added adapter, on all held-out text."
    )
    old: ComparisonOut | None = Field(description="The same on text of earlier jobs; null if there is none.")
    worst: ComparisonOut | None = Field(
        None, description="The same on text of the earlier job for which it most likely rose; null if there is none."
    )
    base: ComparisonOut | None = Field(description="Compared with the base model; null if that was served before.")
    ordinary: ComparisonOut | None = Field(
        None,
        description="Compared with the base model on ordinary text, which a first job must not degrade; null for "
        "later jobs.",
    )
    blocks: int = Field(description="Number of held-out blocks.")
    repeats: int = Field(0, description="Held-out blocks that repeat training text and so prove nothing.")


class VerbatimRecallOut(BaseModel):
    """How often a model continues training text verbatim: 8 tokens, after 8 tokens of context."""

    places: int = Field(description="Number of places tested.")
    base: float = Field(description="Share of places where the base model does, from 0 to 1.")
    personal: float = Field(description="Share of places where the personal model does, from 0 to 1.")


class ReportNumbersOut(BaseModel):
    """A job's results in numbers. Contains no text."""

    verdict: VerdictOut
    verbatim_recall: VerbatimRecallOut | None = Field(description="Null if there is nothing to recall, as with labels.")


class WordOut(BaseModel):
    """A word that became more probable, with its mean probability over held-out text under each model."""

    word: str
    base: float
    personal: float


class CompletionOut(BaseModel):
    """A piece of held-out text, and how each model continues it, always with the likeliest token."""

    prompt: str
    base: str
    personal: str


class ReportOut(ReportNumbersOut):
    """A job's full report."""

    job: str
    curve: Curve
    words: list[WordOut] | None = Field(
        description="Most telling first. Null if a text of the job was deleted, or if the report is incomplete."
    )
    completions: list[CompletionOut] | None = Field(description="Null if `words` is null.")
    tokens_per_word: float | None = Field(
        None, description="Of the job's texts: turns nats per token into nats per word. Null if `words` is null."
    )


class JobProgressOut(Identified):
    """A job's progress. Contains no text."""

    state: JobState
    step: int
    total_steps: int | None = Field(description="Null until the worker has measured its first steps, unless requested.")
    loss: Rounded | None = Field(description="Training loss in nats per token, averaged over recent steps.")
    held_out_loss_before: Rounded | None
    held_out_loss_now: Rounded | None
    outcome: Outcome | None
    tokens_per_second: Rounded | None
    eta_seconds: Rounded | None = Field(description="Time left to run at the recent speed; null if unknown.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobOut(JobProgressOut):
    """A job and its progress."""

    eta_nights: int | None = Field(description="Nights left at the pace of the last ones; null while the job runs.")
    reasons: list[str] = Field(description="Why the job waits.")
    paused_by_owner: bool = Field(description="Whether the job waits until the owner resumes it.")
    predicted_bytes: int | None = Field(description="Predicted peak memory.")
    peak_memory_bytes: int | None = Field(description="Peak resident memory of its worker, including file pages.")
    model: str
    method: str = Field(description="`exact` or `mezo` (until the first start, too); `added`, `candidate`: it judges.")
    mode: str = Field(description="What is trained: `lora` an adapter, `full` all parameters.")
    seed: int
    texts: int | None
    words: int | None
    requested_by: Requester
    adapter: str | None
    attempts: int
    error: str | None


class EventOut(BaseModel):
    """Something that happened to a job."""

    at: datetime
    kind: str
    message: str


class RunOut(BaseModel):
    """One run of a worker."""

    job: str
    began_at: datetime
    ended_at: datetime | None = Field(description="Null while it lasts.")
    seconds: float
    began_because: str
    ended_because: str | None
    cpu_seconds: float
    steps: int

    @classmethod
    def of(cls, row: RunWindow) -> Self:
        """From its row."""
        seconds = ((row.ended_at or row.seen_at) - row.began_at).total_seconds()
        return cls(**dict(row), job=row.job_id, seconds=round(seconds, 1))


class JobDetailOut(JobOut):
    """A job with its settings and history."""

    settings: dict[str, Any]
    plan: dict[str, Any] | None = Field(description="The plan that fits into memory; null before the first start.")
    curve: Curve
    report: ReportNumbersOut | None = Field(description="Null until the job has succeeded. /report has all of it.")
    events: list[EventOut]
    runs: list[RunOut] = Field(description="When its workers ran, and why each ended.")


class AdapterOut(Identified):
    """A finished adapter: a PEFT folder, or a whole model if `mode` is `full`. It started from `parent`."""

    job: str
    model: str
    mode: str
    parent: str | None
    serving: bool
    outcome: Outcome
    held_out_loss_before: float | None
    held_out_loss_now: float | None
    folder: str
    created_at: datetime


class ModelOut(BaseModel):
    """An imported model."""

    name: str
    architecture: str
    parameters: int
    weights_bytes: int
    license: str
    source: str
    default: bool


class EnoughTextOut(BaseModel):
    """Whether there is any text to train on."""

    enough: bool
    texts: int = Field(description="Number of stored texts.")
    new_words: int = Field(description="Words not yet trained on.")


class PlanOut(BaseModel, revalidate_instances="always"):
    """How a job would run, with its predicted memory and time."""

    model: str
    mode: Mode = Field(description="What is trained: `lora` an adapter, `full` all parameters.")
    method: Method = Field(
        description="`exact`: gradients by backpropagation, one layer at a time; `mezo`: forward passes only."
    )
    steps: int = Field(description="If the job's steps fit the night, an estimate.")
    nights: float = Field(description="Usual nights for all steps that the text is worth, or that are requested.")
    batch: int = Field(description="Blocks per step.")
    block_tokens: int
    probes: int = Field(description="Random directions per step of mezo.")
    micro_batch: int = Field(
        description="Rows that pass through the layers together; for mezo, a row is a block at one perturbation."
    )
    kept_layers: int = Field(description="Layers whose activations a step caches instead of recomputing them.")
    reductions: list[str] = Field(description="A sentence for each value that was reduced to fit into memory.")
    predicted: Prediction = Field(
        description="On this device. `anonymous_bytes`, of which memory_limit_bytes limits `working_bytes`, and "
        "`file_bytes`, which the kernel can drop, make `peak_bytes`. `kept_bytes`, a part of `working_bytes`, cache "
        "activations, which saves `kept_seconds` per step. Between steps, `library_bytes` are resident."
    )
    alternatives: list[Alternative] = Field(
        description="Every method, including the chosen one. `reason` says why one without a prediction is impossible."
    )
    memory_limit_bytes: int = Field(description="The setting training.memory_bytes.")
    enough_text: EnoughTextOut

    @classmethod
    def of(cls, planned: Planned, *, model: str, texts: int, new_words: int) -> Self:
        """From a plan that fits, and how much text there is."""
        return cls(
            **asdict(planned.plan),
            model=model,
            nights=round(planned.nights, 2),
            reductions=planned.reductions,
            predicted=planned.prediction,
            alternatives=planned.alternatives,
            memory_limit_bytes=planned.training.memory_bytes,
            enough_text=EnoughTextOut(enough=texts > 0, texts=texts, new_words=new_words),
        )


def seconds_left(job: Job, progress: Progress) -> float | None:
    """How long an open job still has to run at its recent speed; None where that is unknown."""
    if job.state not in OPEN_STATES or progress.seconds_per_step is None or job.total_steps is None:
        return None
    return max(0, job.total_steps - progress.step) * progress.seconds_per_step
