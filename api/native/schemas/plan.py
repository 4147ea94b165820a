"""What a job would take, as a document. Sizes in bytes, durations in seconds."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from pocketllm.daemon.scheduling.planning import Planned
from pocketllm.engine.planning.memory_model import Method, Mode


class PredictionOut(BaseModel):
    """A job's predicted memory and time on this device."""

    model_config = ConfigDict(from_attributes=True)

    library_bytes: int = Field(description="Resident memory of the worker between steps.")
    working_bytes: int = Field(description="Anonymous memory beyond that; memory_limit_bytes limits it.")
    anonymous_bytes: int = Field(description="All anonymous memory, including that of libraries.")
    file_bytes: int = Field(description="File-backed pages, which the kernel can drop.")
    peak_bytes: int = Field(description="Peak resident memory.")
    seconds_per_step: float
    seconds: float = Field(description="Time for all steps.")
    kept_bytes: int = Field(description="The part of working_bytes that caches activations.")
    kept_seconds: float = Field(description="Seconds per step that the cached activations save.")


class AlternativeOut(BaseModel):
    """The prediction for one method."""

    model_config = ConfigDict(from_attributes=True)

    method: Method
    prediction: PredictionOut | None = Field(description="Null if the method is not possible.")
    reason: str | None = Field(description="Why the method is not possible.")


class EnoughTextOut(BaseModel):
    """Whether there is any text to train on."""

    enough: bool
    texts: int = Field(description="Number of stored texts.")
    new_words: int = Field(description="Words not yet trained on.")

    @classmethod
    def of(cls, texts: int, new_words: int) -> Self:
        """From how much there is."""
        return cls(enough=texts > 0, texts=texts, new_words=new_words)


class PlanOut(BaseModel):
    """How a job would run, with its predicted memory and time."""

    model: str
    mode: Mode = Field(description="What is trained: `lora` an adapter, `full` all parameters.")
    method: Method = Field(
        description="`exact`: gradients by backpropagation, one layer at a time; `mezo`: forward passes only."
    )
    steps: int
    batch: int = Field(description="Blocks per step.")
    block_tokens: int
    probes: int = Field(description="Random directions per step of mezo.")
    micro_batch: int = Field(
        description="Rows that pass through the layers together; for mezo, a row is a block at one perturbation."
    )
    kept_layers: int = Field(description="Layers whose activations a step caches instead of recomputing them.")
    reductions: list[str] = Field(description="A sentence for each value that was reduced to fit into memory.")
    predicted: PredictionOut
    alternatives: list[AlternativeOut] = Field(description="Every method, including the chosen one.")
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
