"""What a job would take, as a document. Sizes in bytes, durations in seconds."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from pocketllm.daemon.scheduling.planning import Planned
from pocketllm.engine.planning.memory_model import Method, Mode


class PredictionOut(BaseModel):
    """What a job is predicted to take on this device."""

    model_config = ConfigDict(from_attributes=True)

    library_bytes: int = Field(description="Of the worker between steps.")
    working_bytes: int = Field(description="Anonymous memory on top: what memory_limit_bytes limits.")
    anonymous_bytes: int = Field(description="Anonymous memory, libraries included.")
    file_bytes: int = Field(description="Pages of files, which the kernel can drop.")
    peak_bytes: int = Field(description="Resident memory, all of it.")
    seconds_per_step: float
    seconds: float = Field(description="Of all steps.")
    kept_bytes: int = Field(description="Of working_bytes: the activations that a step keeps.")
    kept_seconds: float = Field(description="That these save in a step.")


class AlternativeOut(BaseModel):
    """What a method would take."""

    model_config = ConfigDict(from_attributes=True)

    method: Method
    prediction: PredictionOut | None = Field(description="Null where it cannot be.")
    reason: str | None = Field(description="Why it cannot be.")


class EnoughTextOut(BaseModel):
    """Whether there is anything to learn from."""

    enough: bool
    texts: int = Field(description="All that are stored.")
    new_words: int = Field(description="Of the texts that no job has learned yet.")

    @classmethod
    def of(cls, texts: int, new_words: int) -> Self:
        """From how much there is."""
        return cls(enough=texts > 0, texts=texts, new_words=new_words)


class PlanOut(BaseModel):
    """How a job would run, and what it would take."""

    model: str
    mode: Mode = Field(description="What is trained: lora is an adapter, full all parameters.")
    method: Method = Field(
        description="exact: gradients by backpropagation, a layer at a time; mezo: forward passes only."
    )
    steps: int
    batch: int = Field(description="Blocks a step.")
    block_tokens: int
    probes: int = Field(description="Directions that are looked along in a step.")
    micro_batch: int = Field(description="Blocks, each at every point of the probes, that go through together.")
    kept_layers: int = Field(description="The layers whose activations a step keeps, in place of computing them again.")
    reductions: list[str] = Field(description="A sentence for each thing that was reduced to make it fit.")
    predicted: PredictionOut
    alternatives: list[AlternativeOut] = Field(description="Each method, the chosen one among them.")
    memory_limit_bytes: int = Field(description="The setting training.memory_bytes.")
    enough_text: EnoughTextOut

    @classmethod
    def of(cls, planned: Planned, *, model: str, enough_text: EnoughTextOut) -> Self:
        """From a plan that fits."""
        plan = planned.plan
        return cls(
            model=model,
            mode=plan.mode,
            method=plan.method,
            steps=plan.steps,
            batch=plan.batch,
            block_tokens=plan.block_tokens,
            probes=plan.probes,
            micro_batch=plan.micro_batch,
            kept_layers=plan.kept_layers,
            reductions=planned.reductions,
            predicted=PredictionOut.model_validate(planned.prediction),
            alternatives=[AlternativeOut.model_validate(one) for one in planned.alternatives],
            memory_limit_bytes=planned.training.memory_bytes,
            enough_text=enough_text,
        )
