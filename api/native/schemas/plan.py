"""What a job would take, as a document. Sizes in bytes, durations in seconds."""

from dataclasses import asdict
from typing import Self

from pydantic import BaseModel, Field

from pocketllm.daemon.scheduling.planning import Alternative, Planned
from pocketllm.engine.planning.memory_model import Method, Mode, Prediction


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
