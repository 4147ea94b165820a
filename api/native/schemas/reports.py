"""What a job has learned, as documents: numbers, which anybody may see, and content, which is the owner's."""

from typing import Self

from pydantic import BaseModel, Field

from pocketllm.storage.repositories.step_log import Curve
from pocketllm.storage.tables import Outcome, Report


class ComparisonOut(BaseModel):
    """Two losses on the same held-out text, in nats per token."""

    before: float
    now: float
    reduction: float = Field(description="How much it fell; positive is better.")
    standard_error: float | None = Field(description="Of the reduction; null where one text says nothing about it.")
    texts: int | None = Field(None, description="Texts, or stretches of a single one; null in older reports.")


class VerdictOut(BaseModel):
    """What the held-out text says of what was learned, and so whether it is served."""

    outcome: Outcome
    overall: ComparisonOut = Field(description="With what was served before, on new text; until 0.1.0 on all text.")
    old: ComparisonOut | None = Field(description="The same on text of earlier jobs; null where there is none.")
    worst: ComparisonOut | None = Field(None, description="Of these jobs the one whose text is most surely worse.")
    base: ComparisonOut | None = Field(description="With the base model; null where that is what was served.")
    ordinary: ComparisonOut | None = Field(
        None, description="With the base model on ordinary text, which a first job must not spoil; null after it."
    )
    blocks: int = Field(description="Held-out blocks that were measured.")
    repeats: int = Field(0, description="Blocks of them that repeat what was learned, and prove nothing.")


class VerbatimRecallOut(BaseModel):
    """From how much of the text that was learned the next 8 tokens come out word for word, left to itself."""

    places: int = Field(description="That were looked at, each with 8 tokens before it.")
    base: float = Field(description="Part of them from which the base model does so: 0 to 1.")
    personal: float = Field(description="Part of them from which the personal one does so: 0 to 1.")


class ReportNumbersOut(BaseModel):
    """What a job has learned, in numbers. Holds no content."""

    verdict: VerdictOut
    verbatim_recall: VerbatimRecallOut | None = Field(
        description="Null where there is nothing to repeat, as of labels."
    )


class HeldOutPoint(BaseModel):
    """A measurement on held-out text."""

    step: int
    held_out_loss: float = Field(description="Nats per token.")


class TrainingPoint(BaseModel):
    """Some steps of training."""

    step: int = Field(description="The last of them.")
    loss: float = Field(description="Nats per token, mean of up to 5 steps.")


class CurveOut(BaseModel):
    """How a job's losses went, thinned to at most 200 points each."""

    held_out: list[HeldOutPoint]
    training: list[TrainingPoint]

    @classmethod
    def of(cls, curve: Curve) -> Self:
        """From the step log's."""
        return cls(
            held_out=[HeldOutPoint(step=point.step, held_out_loss=round(point.loss, 4)) for point in curve.held_out],
            training=[TrainingPoint(step=point.step, loss=round(point.loss, 4)) for point in curve.training],
        )


class WordOut(BaseModel):
    """A word that the personal model expects more: its mean probability over the places in held-out text."""

    word: str
    base: float
    personal: float


class CompletionOut(BaseModel):
    """The beginning of a held-out text, and how both models go on, always with the likeliest token."""

    prompt: str
    base: str
    personal: str


class ReportOut(ReportNumbersOut):
    """Everything that there is to tell of what a job has learned."""

    job: str
    curve: CurveOut
    words: list[WordOut] | None = Field(
        description="The most telling first. Null when a text of the job was deleted, or when it could not be made."
    )
    completions: list[CompletionOut] | None = Field(description="Null like words.")


def report_numbers(report: Report | None) -> ReportNumbersOut | None:
    """What may be shown to anybody."""
    return None if report is None else ReportNumbersOut.model_validate(report.numbers)


def whole_report(report: Report, curve: Curve) -> ReportOut:
    """What is the owner's to see."""
    content = report.content or {"words": None, "completions": None}
    return ReportOut(job=report.job_id, curve=CurveOut.of(curve), **report.numbers, **content)
