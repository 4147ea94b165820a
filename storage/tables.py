"""The tables. Times are aware UTC datetimes, durations seconds, sizes bytes, losses nats per token."""

import secrets
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Column, DateTime, Enum, ForeignKey, Index, false, text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept as naive UTC because SQLite has no time zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware to naive UTC; a naive value is a mistake of the caller and raises ValueError."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value!r}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive UTC to aware."""
        return None if value is None else value.replace(tzinfo=UTC)


class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"  # waiting for its first start
    RUNNING = "running"  # a worker process is at it
    PAUSED = "paused"  # started, and waiting; always with reasons
    SUCCEEDED = "succeeded"  # all steps done, an adapter was made
    FAILED = "failed"  # given up; `error` says why
    CANCELLED = "cancelled"  # the owner or the daemon withdrew it


def _enum(members: type[StrEnum]) -> Enum:
    """A column type that stores an enum by value and gives members back."""
    return Enum(members, values_callable=lambda enum: [member.value for member in enum], native_enum=False)


_NULLABLE_JSON = JSON(none_as_null=True)

#: An owner that is no app.
PERSON = "owner"
#: Before the path of a watched file that is an owner. No app is called like this: a name has no colon.
FILE = "file:"
#: What `Job.start_from` says for the base model.
BASE = "base"
#: What `Job.start_from` and `Job.method` say of a job that judges an adapter that was trained elsewhere.
ADDED = "added"
#: The same of a job that judges a candidate again, on text that has come in since.
CANDIDATE = "candidate"
OPEN_STATES = (JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)


class Requester(StrEnum):
    """Who requested a job."""

    OWNER = "owner"  # an explicit request
    THRESHOLD = "threshold"  # enough new text had come in


class Outcome(StrEnum):
    """The result of a job's evaluation on held-out text."""

    LEARNED = "learned"  # significantly better on new text than what was served
    TOO_LITTLE = "too little text to tell yet"  # kept, not served; its texts stay new, and the next job starts from it
    NO_PROOF = "no proof of learning"  # kept, not served
    WORSE = "worse"  # significantly, on new text, on old text, or far worse on ordinary text; kept, not served


class Kind(StrEnum):
    """The kind of a text."""

    PLAIN = "plain"  # all of its words
    COMPLETION = "completion"  # a prompt, and the words that follow it: only these are learned
    LABELLED = "labelled"  # which label the text has
    CHAT = "chat"  # messages, of which the assistant's are learned


class Text(SQLModel, table=True):
    """One text of the owner's. Its id is derived from source and content, so the same text twice is one row."""

    __table_args__ = (
        # New words are counted at each tick; from this alone, since of the table every text would be read.
        Index("new_words", "learned_in", "label", "words", "id"),
    )

    id: str = Field(primary_key=True)
    number: int = Field(unique=True)  #: for the search index
    source: str = Field(index=True)
    #: All of a plain text; the prompt when there is a completion; what the label is about when there is one; a chat
    #: as it is read.
    text: str
    completion: str | None = None
    label: str | None = None
    #: A chat's: `role`, `content`, and `weight`, which is 0 where an assistant's message is only read.
    messages: list[dict[str, Any]] | None = Field(default=None, sa_column=Column(_NULLABLE_JSON, nullable=True))
    words: int
    #: Kept out of training, to measure with. Follows from the content, unless it came in a file that says so.
    held_out: bool
    #: The succeeded job of the model in use that has learned this text; None while it is new to that model.
    learned_in: str | None = None
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))

    @property
    def kind(self) -> Kind:
        """What it teaches."""
        if self.messages is not None:
            return Kind.CHAT
        if self.completion is not None:
            return Kind.COMPLETION
        return Kind.PLAIN if self.label is None else Kind.LABELLED


class TextOwner(SQLModel, table=True):
    """One of those who have a text: PERSON, an app by its name, a watched file, or an open job that uses what its file
    has no longer. The last to let it go deletes it.
    """

    __tablename__ = "text_owner"
    __table_args__ = (Index("what_an_owner_has", "owner", "sent_at", "bytes"),)  # a quota is checked in the index alone

    text_id: str = Field(sa_column=Column(ForeignKey("text.id", ondelete="CASCADE"), primary_key=True))
    owner: str = Field(primary_key=True)
    sent_at: datetime = Field(sa_type=UtcDateTime)
    bytes: int  #: what the text counts towards an app's quota


class Job(SQLModel, table=True):
    """One run of learning, from request to outcome."""

    __tablename__ = "job"

    id: str = Field(default_factory=lambda: f"job-{secrets.token_hex(6)}", primary_key=True)
    state: JobState = Field(default=JobState.QUEUED, sa_column=Column(_enum(JobState), nullable=False, index=True))
    reasons: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    requested_by: Requester = Field(sa_column=Column(_enum(Requester), nullable=False))
    #: The owner said 'now': waiting is overridden, safety is not.
    immediate: bool = False
    #: It waits until the owner resumes it.
    paused_by_owner: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    model: str
    method: str = "mezo"
    #: What is trained: "lora" is an adapter, "full" all parameters.
    mode: str = Field(default="lora", sa_column_kwargs={"server_default": "lora"})
    seed: int
    #: Everything that determines the run besides model, seed and texts.
    settings: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    #: None until the worker has measured its first steps, unless a number was set or requested.
    total_steps: int | None = None
    #: The peak memory that was foretold before the start.
    predicted_bytes: int | None = None
    #: What the worker settled on so as to fit into memory; None until it has.
    plan: dict[str, Any] | None = Field(default=None, sa_column=Column(_NULLABLE_JSON, nullable=True))
    #: The state of early stopping after the last check; None before the first.
    early_stopping: dict[str, Any] | None = Field(default=None, sa_column=Column(_NULLABLE_JSON, nullable=True))
    #: Texts and words it learns from; known when it first starts, or from the beginning where it was given them.
    texts: int | None = None
    words: int | None = None
    #: The adapter it starts from; None is the base model.
    parent: str | None = None
    #: Of its chain of jobs on the same text: 1 and the number of earlier verdicts that were not 'learned', since they
    #: are on the same held-out text; the words of the first one's new texts; and the steps that they have made.
    link: int = Field(default=1, sa_column_kwargs={"server_default": text("1")})
    chain_words: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    chain_steps: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    #: The night ended it before it had made all steps that its text is worth: another job follows.
    unfinished: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    #: What it was asked to start from: an adapter, BASE, ADDED or CANDIDATE; None is what is served at its first start.
    start_from: str | None = None
    #: What its adapter must beat to be served: what was served at its first start, an adapter or BASE.
    compared_with: str | None = None
    #: The owner has rolled its adapter back: later jobs neither learn nor replay its texts.
    withdrawn: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    #: Where it was asked for as a fine-tuning job: what was said then, to be said back, and by whom.
    tuning: dict[str, Any] | None = Field(default=None, sa_column=Column(_NULLABLE_JSON, nullable=True))
    #: The adapter it made, or judged again.
    adapter: str | None = None
    outcome: Outcome | None = Field(default=None, sa_column=Column(_enum(Outcome), nullable=True))
    error: str | None = None
    #: How often a worker was started on it. Writes of a worker with an older number are refused.
    starts: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    #: Crashes since the last step that was made. A pause is not a crash.
    attempts: int = 0
    #: Not before this time, after a crash or a kill.
    not_before: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True))
    peak_memory_bytes: int | None = None
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))
    started_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True))

    @property
    def fits_the_night(self) -> bool:
        """Whether the worker chooses the number of steps."""
        return self.settings.get("steps") == "auto"

    @property
    def judges(self) -> bool:
        """Whether it makes no step, and judges an adapter that was there before."""
        return self.start_from in (ADDED, CANDIDATE)

    @property
    def looks_again(self) -> bool:
        """Whether that is a candidate, judged on what has come in since."""
        return self.start_from == CANDIDATE

    @property
    def owner(self) -> str:
        """PERSON, or the app that has asked for it as a fine-tuning job."""
        return str((self.tuning or {}).get("owner", PERSON))


class RequestKey(SQLModel, table=True):
    """A caller's name and an Idempotency-Key that it sent, and the job that it got, and gets again."""

    __tablename__ = "request_key"

    key: str = Field(primary_key=True)
    job_id: str = Field(foreign_key="job.id", ondelete="CASCADE")


class JobText(SQLModel, table=True):
    """A job's texts and their roles: fixed at its first start or before, less those deleted since."""

    __tablename__ = "job_text"

    job_id: str = Field(foreign_key="job.id", primary_key=True, ondelete="CASCADE")
    text_id: str = Field(sa_column=Column(ForeignKey("text.id", ondelete="CASCADE"), primary_key=True, index=True))
    #: The job that had learned the text by then: it is replayed. None: it is new to this job.
    learned_in: str | None = None
    #: Measured with, not trained on.
    held_out: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    #: Of all jobs of its model, this one counts as having learned the text: what `Text.learned_in` is taken from.
    learned_here: bool = Field(default=False, sa_column_kwargs={"server_default": false()})


class Step(SQLModel, table=True):
    """One row of the step log. With MeZO, adapter(t) = adapter(0) + replay of the rows up to t, bit for bit."""

    job_id: str = Field(foreign_key="job.id", primary_key=True, ondelete="CASCADE")
    step: int = Field(primary_key=True)
    seed: int
    #: The projected gradient along each probe's direction: (L+ - L-) / (2 eps).
    scalars: list[float] = Field(sa_column=Column(JSON, nullable=False))
    loss: float
    learning_rate: float
    tokens: int
    seconds: float


class Evaluation(SQLModel, table=True):
    """Held-out loss at a step: the mean in nats per token, and each block's by its key, for paired comparison.

    Step -1 is the base model, where the job does not start from it; step -2 a part of what was evaluated last.
    """

    job_id: str = Field(foreign_key="job.id", primary_key=True, ondelete="CASCADE")
    step: int = Field(primary_key=True)
    loss: float
    block_losses: dict[str, float] = Field(sa_column=Column(JSON, nullable=False))
    at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))


class Report(SQLModel, table=True):
    """What a succeeded job has learned, for people."""

    job_id: str = Field(foreign_key="job.id", primary_key=True, ondelete="CASCADE")
    #: The promotion's verdict, and how much of the text the model repeats. Never user text.
    numbers: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    #: Words and completions: user text. None when there is none, or when one of the texts was deleted.
    content: dict[str, Any] | None = Field(default=None, sa_column=Column(_NULLABLE_JSON, nullable=True))


class Event(SQLModel, table=True):
    """Something that happened to a job. Never holds user text."""

    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True, ondelete="CASCADE")
    at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    kind: str
    message: str


class Deletion(SQLModel, table=True):
    """The receipt for texts that were deleted. Never holds user text."""

    id: str = Field(primary_key=True)
    at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    #: How many there were.
    texts: int
    #: The database was written anew since, so that the bytes are gone from it and from its log.
    erased: bool = Field(default=False, index=True)
    #: The adapters that have learned one of them, or started from such an adapter.
    adapters: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    #: One of those was being served by the model in use, and another one, or the base model, is since.
    replaced: bool = False
    #: The jobs that start again, while their files are to be deleted.
    restarts: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    #: The job that learns again what is left.
    job: str | None = None
    #: The watched files that still have one of them.
    files: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))


class DeletedText(SQLModel, table=True):
    """A text that was deleted while a watched file had it: it is not taken from there again as long as it is there."""

    __tablename__ = "deleted_text"

    owner: str = Field(primary_key=True)
    text_id: str = Field(primary_key=True)


class RunWindow(SQLModel, table=True):
    """One run of a worker. Updated while it lasts, so a kill loses only its last seconds."""

    __tablename__ = "run_window"

    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True, ondelete="CASCADE")
    began_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))
    #: When the worker was last seen running.
    seen_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    #: None while it lasts.
    ended_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True))
    began_because: str
    ended_because: str | None = None
    cpu_seconds: float = 0.0
    #: The job's last step when it began, and the steps made since.
    began_step: int = 0
    steps: int = 0


class IdleWindow(SQLModel, table=True):
    """A time in which the gate was open, whether a job ran or not: the forecast is made from these."""

    __tablename__ = "idle_window"

    id: int | None = Field(default=None, primary_key=True)
    began_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
    #: None while it lasts.
    ended_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime, nullable=True, index=True))


class HeldBack(SQLModel, table=True):
    """For how long a blocker kept a waiting job from running in a night, while nobody used the device."""

    __tablename__ = "held_back"

    night: date = Field(primary_key=True)  #: the date on which it ended
    name: str = Field(primary_key=True)
    seconds: float = 0.0


class Preference(SQLModel, table=True):
    """A persistent preference: key and JSON value."""

    key: str = Field(primary_key=True)
    value: Any = Field(sa_column=Column(JSON, nullable=False))


class AppToken(SQLModel, table=True):
    """An app that is let in."""

    __tablename__ = "app_token"

    name: str = Field(primary_key=True)
    digest: str = Field(unique=True)  #: hexadecimal SHA-256 of the token
    scopes: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))


class UploadedFile(SQLModel, table=True):
    """A file that a fine-tuning job may be asked to learn. Gone when a text that was taken from it is deleted."""

    __tablename__ = "uploaded_file"

    id: str = Field(default_factory=lambda: f"file-{secrets.token_hex(12)}", primary_key=True)
    owner: str = Field(default=PERSON, sa_column_kwargs={"server_default": PERSON})
    filename: str
    purpose: str
    size: int  #: bytes
    data: bytes
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False, index=True))


class WatchedFile(SQLModel, table=True):
    """A file of a watched folder, as it was when it was last read. It owns its texts."""

    __tablename__ = "watched_file"

    path: str = Field(primary_key=True)
    #: A hash of inode, size, time and way to read it; odd: on another disk than the folder; 0 or 1: read in part.
    version: int
    #: It was not there at the last scan, which may be a rumour.
    missing_since: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Adapter(SQLModel, table=True):
    """A finished adapter; its files are in the data folder under adapters/<id>."""

    __table_args__ = (
        # At most one adapter a model is served; the database itself sees to it.
        Index("one_serving_adapter_a_model", "model", unique=True, sqlite_where=text("serving")),
    )

    id: str = Field(primary_key=True)
    job_id: str = Field(foreign_key="job.id")
    model: str = Field(index=True)
    mode: str = Field(default="lora", sa_column_kwargs={"server_default": "lora"})
    parent: str | None = None
    #: A part of its name, where whoever asked for it wished one.
    suffix: str | None = None
    serving: bool = False
    outcome: Outcome = Field(sa_column=Column(_enum(Outcome), nullable=False))
    held_out_loss_before: float | None = None
    held_out_loss_now: float | None = None
    #: Of its files, by daemon/adapter_files.py; None from older versions.
    sha256: str | None = None
    created_at: datetime = Field(sa_column=Column(UtcDateTime, nullable=False))
