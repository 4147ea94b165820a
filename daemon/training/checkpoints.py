"""Durable storage of a run: records and early stopping in the database, checkpoints in a folder."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import torch

from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.atomic import SCRATCH
from pocketllm.engine.formats.safetensors_io import StoredTensors, write_tensors
from pocketllm.engine.method import StepRecord
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Step

_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A method's state after a step."""

    step: int
    state: Mapping[str, torch.Tensor]  #: empty if the records are enough


class StoredRun:
    """A job's run: records, checkpoints (STEP.safetensors), early stopping."""

    def __init__(self, store: Store, job_id: str, folder: Path) -> None:
        """folder: of the checkpoints; created with the first."""
        self._store, self._job_id, self._folder = store, job_id, folder

    def records(self) -> Sequence[StepRecord]:
        """All records, from the first step."""
        return [_record_of(row) for row in self._store.step_log.steps(self._job_id)]

    def append(self, record: StepRecord, *, seconds: float) -> None:
        """Write a new record to disk."""
        self._store.step_log.append(Step(job_id=self._job_id, seconds=seconds, **asdict(record)))

    def early_stopping(self) -> EarlyStopping | None:
        """The last stored state; None before the first."""
        document = self._store.jobs.get(self._job_id).early_stopping
        return None if document is None else EarlyStopping(**document)

    def keep(self, stopping: EarlyStopping) -> None:
        """Store early stopping."""
        self._store.jobs.update(self._job_id, early_stopping=asdict(stopping))

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        """Delete the records beyond the best step and store early stopping, atomically. step: the current one.

        Adds an event, unless there is nothing to roll back.
        """
        self._store.step_log.go_back(
            self._job_id,
            step=stopping.best_step,
            early_stopping=asdict(stopping),
            ended=stopping.ended,
            message=_message(stopping, step) if step > stopping.best_step or not stopping.ended else None,
            now=datetime.now(UTC),
        )

    def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
        """Write a checkpoint atomically, and delete others than that of the best step.

        Raises OSError when the disk is full; earlier checkpoints stay.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_tensors(self._folder / f"{checkpoint.step}{_SUFFIX}", checkpoint.state)
        if checkpoint.step == stopping.best_step:
            return  # the database still refers to the previous best
        for step, old in self._checkpoints().items():
            if step not in (checkpoint.step, stopping.best_step):
                old.unlink()

    def load(self, stopping: EarlyStopping) -> Checkpoint | None:
        """The checkpoint to resume from; None before the first. Raises EngineError if it is missing.

        Deletes those beyond the last record, which were rolled back, and what a killed worker was writing.
        """
        for half in self._folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(half, ignore_errors=True)
        last = self._store.step_log.last_step(self._job_id)
        for step, file in self._checkpoints().items():
            if step > last:
                file.unlink()
        step = max([stopping.best_step, *self._checkpoints()])
        if not step:
            return None
        file = self._folder / f"{step}{_SUFFIX}"
        try:
            return Checkpoint(step=step, state=StoredTensors(file))
        except (OSError, ModelFileError) as error:
            message = f"The job's checkpoint {file.name} cannot be read ({error}). Request a new job."
            raise ModelFileError(message) from error

    def _checkpoints(self) -> dict[int, Path]:
        return {int(file.stem): file for file in self._folder.glob(f"[0-9]*{_SUFFIX}")}


def _record_of(row: Step) -> StepRecord:
    """The record in a row of the step log."""
    found = {field.name: getattr(row, field.name) for field in fields(StepRecord)}
    return StepRecord(**found | {"scalars": tuple(row.scalars)})


def ended_early(stopping: EarlyStopping, step: int) -> str:
    """The message for a run that early stopping ended after this step."""
    return f"validation loss stopped improving after step {stopping.best_step}; rolled back to it from step {step}"


def _message(stopping: EarlyStopping, step: int) -> str:
    if stopping.ended:
        return ended_early(stopping, step)
    return (
        f"rolled back from step {step} to step {stopping.best_step}, which had the lowest validation loss, "
        f"{stopping.best_loss:.4g} nats per token; continuing at {stopping.share:g} of the learning rate"
    )
