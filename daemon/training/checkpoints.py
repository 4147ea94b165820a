"""Durable storage of a run: records and early stopping in the database, checkpoints in a folder."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from pocketllm.daemon.training.early_stopping import EarlyStopping
from pocketllm.daemon.training.trainer import Checkpoint
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.safetensors_io import StoredTensors, write_tensors
from pocketllm.engine.method import StepRecord
from pocketllm.storage.step_log_codec import StepRow
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Step

#: The latest checkpoint's name has its step and the halvings of the rate; the best one's is valid after any halving.
_LATEST, _BEST = "latest-{}-{}.safetensors", "best-{}.safetensors"


class StoredRun:
    """pocketllm.daemon.training.trainer.RunStore of a job."""

    def __init__(self, store: Store, job_id: str, folder: Path) -> None:
        """folder: of the checkpoints; created with the first."""
        self._store, self._job_id, self._folder = store, job_id, folder

    def records(self) -> Sequence[StepRecord]:
        """See RunStore."""
        return [record_of(row) for row in self._store.step_log.steps(self._job_id)]

    def append(self, record: StepRecord, *, seconds: float) -> None:
        """See RunStore."""
        self._store.step_log.append(Step(job_id=self._job_id, seconds=seconds, **asdict(record)))

    def early_stopping(self) -> EarlyStopping | None:
        """See RunStore."""
        document = self._store.jobs.get(self._job_id).early_stopping
        return None if document is None else EarlyStopping.from_json(document)

    def keep(self, stopping: EarlyStopping) -> None:
        """See RunStore."""
        self._store.jobs.set_early_stopping(self._job_id, stopping.to_json())

    def go_back(self, stopping: EarlyStopping, *, step: int) -> None:
        """See RunStore. Adds an event, unless there is nothing to roll back."""
        self._store.step_log.go_back(
            self._job_id,
            step=stopping.best_step,
            early_stopping=stopping.to_json(),
            ended=stopping.ended,
            message=_message(stopping, step) if step > stopping.best_step or not stopping.ended else None,
            now=datetime.now(UTC),
        )

    def save(self, checkpoint: Checkpoint, stopping: EarlyStopping) -> None:
        """See RunStore. Raises OSError when the disk is full; earlier checkpoints stay."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        best = _BEST.format(stopping.best_step)
        name = best if checkpoint.step == stopping.best_step else _LATEST.format(checkpoint.step, stopping.halvings)
        write_tensors(self._folder / name, checkpoint.state)
        if name == best:
            return  # the database still refers to the previous best
        for old in self._folder.glob("*.safetensors"):
            if old.name not in (name, best):
                old.unlink()

    def load(self, stopping: EarlyStopping) -> Checkpoint | None:
        """See RunStore."""
        last = self._store.step_log.last_step(self._job_id)
        found = {stopping.best_step: self._folder / _BEST.format(stopping.best_step)} if stopping.best_step else {}
        for file in self._folder.glob(_LATEST.format("*", stopping.halvings)):
            step = int(file.name.split("-")[1])
            if stopping.best_step < step <= last:
                found[step] = file
        if not found:
            return None
        step = max(found)
        try:
            return Checkpoint(step=step, state=StoredTensors(found[step]))
        except (OSError, ModelFileError) as error:
            raise ModelFileError(
                f"The job's checkpoint {found[step].name} is lost ({error}). Start the job again."
            ) from error


def record_of(row: Step | StepRow) -> StepRecord:
    """The record in a row of the step log."""
    return StepRecord(
        step=row.step,
        seed=row.seed,
        scalars=tuple(row.scalars),
        loss=row.loss,
        learning_rate=row.learning_rate,
        tokens=row.tokens,
    )


def ended_early(stopping: EarlyStopping, step: int) -> str:
    """The message for a run that early stopping ended after this step."""
    return f"validation loss stopped improving after step {stopping.best_step}; rolled back to it from step {step}"


def _message(stopping: EarlyStopping, step: int) -> str:
    if stopping.ended:
        return ended_early(stopping, step)
    return (
        f"rolled back from step {step} to step {stopping.best_step}, which had the lowest validation loss, "
        f"{stopping.best_loss:.4g} nats per token; continuing at {stopping.share:g} of the rate"
    )
