"""A job's step log as JSON lines, for a replay: a header, then a line for each step. It contains no text.

Scalars and learning rates are float32 in use, and a number in JSON has all their digits: a replay is bit-equal.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

if TYPE_CHECKING:  # the command line reads exports without the database's library
    from pocketllm.storage.tables import Job, Step

#: The settings that affect the run.
SETTINGS = (
    "batch",
    "block_tokens",
    "epsilon",
    "step_size",
    "rank",
    "targets",
)
_FIELDS = frozenset(
    ("job", "model", "mode", "seed", "probes", "noise", "total_steps", "settings", "parent", "base_sha256", "steps")
)


class StepRow(BaseModel, frozen=True, strict=True, allow_inf_nan=False, extra="forbid"):
    """One step."""

    step: int = Field(ge=1)
    seed: int
    scalars: tuple[float, ...] = Field(min_length=1, strict=False)
    loss: float
    learning_rate: float
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepLogExport:
    """The contents of an export file.

    header: job, model, mode, seed, probes, noise, total_steps, settings, parent, base_sha256 (of the base model's
    weights; None if unknown) and steps, the number of rows.
    """

    header: Mapping[str, Any]
    rows: list[StepRow]


def export_step_log(job: "Job", rows: "Sequence[Step]", *, base_sha256: str | None = None) -> bytes:
    """The export of a job. rows: one or more."""
    # The plan has the settings as reduced to fit memory.
    run = {**job.settings, **(job.plan or {})}
    header = {
        "job": job.id,
        "model": job.model,
        "mode": job.mode,
        "seed": job.seed,
        "probes": len(rows[0].scalars),
        "noise": job.settings.get("noise", "rademacher"),
        "total_steps": job.total_steps,
        "settings": {name: run[name] for name in SETTINGS if name in run},
        "parent": job.parent,
        "base_sha256": base_sha256,
        "steps": len(rows),
    }
    lines = [header, *(row.model_dump(exclude={"job_id"}) for row in rows)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_export(data: bytes) -> StepLogExport:
    """Read what `export_step_log` returned. Raises ValueError, whose message is a sentence, for other data."""
    first, *lines = data.splitlines() or [b""]
    try:
        header = json.loads(first)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not header.keys() >= _FIELDS:
        raise ValueError("This is not an exported step log, or it is damaged. `pocketllm steps JOB FILE` writes one.")
    try:
        rows = [StepRow.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise ValueError(f"A line of this file is not a step ({error.errors()[0]['msg']}). Export it again.") from error
    if [row.step for row in rows] != list(range(1, len(rows) + 1)) or len(rows) != header["steps"]:
        raise ValueError("This step log is truncated or damaged: some steps are missing. Export it again.")
    if any((row.seed, len(row.scalars)) != (header["seed"], header["probes"]) for row in rows):
        raise ValueError("The header of this step log does not match its rows. Export it again.")
    return StepLogExport(header=header, rows=rows)
