"""What a job has learned, as documents: numbers, which anybody may see, and content, which is the owner's."""

from pydantic import BaseModel, Field

from pocketllm.storage.repositories.step_log import Curve
from pocketllm.storage.tables import Outcome


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
