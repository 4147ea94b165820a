"""Replays a MeZO job from its step log, and compares the result with the stored adapter.

A step is its scalars along directions that follow from the seed, so the initial parameters and the step log give the
adapter, without text and without forward passes, bit for bit on any machine.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from safetensors import safe_open

from pocketllm.daemon.errors import CannotReplay
from pocketllm.daemon.paths import DataFolder, is_there
from pocketllm.daemon.tools.backup import Check
from pocketllm.daemon.training.checkpoints import record_of
from pocketllm.engine.errors import MezoError
from pocketllm.engine.formats.model_folder import NAME_PATTERN, ModelFolder, open_model_folder
from pocketllm.engine.method import StepRecord
from pocketllm.engine.params.full import FullWeights, save_full
from pocketllm.engine.params.lora import WEIGHTS_NAME, Adapter, load_adapter
from pocketllm.engine.params.lora_folder import read_config
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.engine.streamed.weights import open_weights
from pocketllm.mezo.estimator import replay
from pocketllm.storage.store import Store
from pocketllm.storage.tables import OPEN_STATES, Job, Step


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The result of a replay, compared with the stored adapter."""

    job: str
    adapter: str
    mode: str
    rows: int  #: steps that were replayed
    seconds: float  #: of the replay, without reading and comparing
    tensors: int
    differing: tuple[str, ...]  #: names of the tensors that are not bit-identical
    max_difference: float | None  #: between elements; 0 if only signs of zero differ, None with NaN
    base_is_newer: bool  #: the initial weights were imported again since, and may differ

    @property
    def identical(self) -> bool:
        """Whether all tensors are bit-identical."""
        return not self.differing


def rebuild(
    folder: DataFolder,
    store: Store,
    job_id: str,
    *,
    output: Path | None = None,
    on_row: Callable[[int, int], None] = lambda _done, _of: None,
) -> Rebuilt:
    """Replay a job, and compare the result with the job's adapter.

    output: a new folder for the result. on_row: called after each row with the number of rows done and in all.
    Raises CannotReplay with the reason; NotFound for an unknown job; or MezoError when files are broken or gone.
    """
    job = store.jobs.get(job_id)
    made = _folder_of_what_was_made(folder, job)
    if output is not None:
        _check_output(output, job)
    rows = store.step_log.steps(job.id)
    if [row.step for row in rows] != list(range(1, job.total_steps + 1)):
        raise CannotReplay(
            f"The step log holds {len(rows)} of the {job.total_steps} steps of job {job.id}. Choose another job."
        )
    with torch.inference_mode():
        trainable = _start(folder, job, made)
        started = time.monotonic()
        replay(trainable, _counted(rows, lambda done: on_row(done, len(rows))), job.settings.get("noise", "rademacher"))
        seconds = time.monotonic() - started
        stored = _stored(made, job)
        differences = _differences(_tensors(trainable), stored)
        if output is not None:
            _save(trainable, folder, job, made, output)
    return Rebuilt(
        job=job.id,
        adapter=made.name,
        mode=job.mode,
        rows=len(rows),
        seconds=seconds,
        tensors=len(stored),
        differing=tuple(differences),
        max_difference=max(differences.values(), default=0.0) if all(map(isfinite, differences.values())) else None,
        base_is_newer=job.mode == "full"
        and job.started_at is not None
        and _start_model(folder, job).manifest.created_at > job.started_at,
    )


def replays(folder: DataFolder, store: Store) -> Iterator[Check]:
    """Replay the MeZO jobs whose adapters, and those that they started from, are there."""
    there = {adapter.id for adapter in store.adapters.all()}
    for adapter in store.adapters.all():
        job = store.jobs.get(adapter.job_id)
        if job.method != "mezo" or (job.parent is not None and job.parent not in there):
            continue
        try:
            differing = rebuild(folder, store, job.id).differing
            problem = f"{len(differing)} tensors differ from the replay" if differing else None
        except (CannotReplay, MezoError, OSError) as error:
            problem = str(error)
        yield Check(name=f"steps of {job.id}", problem=problem)


def _folder_of_what_was_made(folder: DataFolder, job: Job) -> Path:
    if job.state in OPEN_STATES:
        raise CannotReplay(f"Job {job.id} is {job.state}. Wait until it has ended, then replay it.")
    if job.adapter is None:
        raise CannotReplay(
            f"Job {job.id} {job.state} without an adapter, so there is nothing to compare with. "
            "Choose one that succeeded; `pocketllm jobs` lists them."
        )
    if job.method != "mezo":
        raise CannotReplay(
            f"Job {job.id} used exact gradients, which depend on the texts and cannot be replayed from its step log. "
            "Only jobs with training.method = mezo can."
        )
    made = folder.adapter(job.adapter)
    if not made.is_dir():
        raise CannotReplay(f"The adapter of job {job.id} is no longer in {made}. Choose another job.")
    return made


def _check_output(output: Path, job: Job) -> None:
    if is_there(output):
        raise CannotReplay(f"{output} already exists. Give the name of a new folder.")
    if not output.absolute().parent.is_dir():
        raise CannotReplay(f"There is no folder {output.parent}. Create it first.")
    if job.mode == "full" and not NAME_PATTERN.fullmatch(output.name):
        raise CannotReplay(
            f"{output.name!r} is not a valid model name. Use lower-case letters, digits, dots and dashes."
        )


def _start(folder: DataFolder, job: Job, made: Path) -> Adapter | FullWeights:
    """The job's initial parameters."""
    if job.mode == "full":
        return LanguageModel(_start_model(folder, job)).full()
    if job.parent is not None:
        return load_adapter(folder.adapter(job.parent))
    adapter = load_adapter(made)  # MeZO does not train A; B was zero
    for b in adapter.b.values():
        b.zero_()
    return adapter


def _start_model(folder: DataFolder, job: Job) -> ModelFolder:
    """The initial weights of a full-parameter job: the base model's, or its parent's."""
    return open_model_folder(folder.adapter(job.parent) if job.parent else folder.models / job.model)


def _tensors(trainable: Adapter | FullWeights) -> dict[str, torch.Tensor]:
    """The tensors of the parameters, by name."""
    if isinstance(trainable, FullWeights):
        return trainable.tensors
    return {f"{path}.A": a for path, a in trainable.a.items()} | {f"{path}.B": b for path, b in trainable.b.items()}


def _stored(made: Path, job: Job) -> dict[str, torch.Tensor]:
    """The tensors that the job stored, by the names of `_tensors`."""
    if job.mode == "full":
        return {name: weight.floats for name, weight in open_weights(open_model_folder(made).weights).items()}
    return _tensors(load_adapter(made))


def _differences(rebuilt: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each tensor that is not bit-identical. Raises CannotReplay."""
    if rebuilt.keys() != stored.keys() or any(rebuilt[name].shape != stored[name].shape for name in stored):
        raise CannotReplay(
            "The stored adapter has other tensors than what the job started from. One of the two folders was replaced; "
            "put it back."
        )
    return {
        name: float((rebuilt[name].double() - stored[name].double()).abs().max())
        for name in stored
        if not _same_bits(rebuilt[name], stored[name])
    }


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Compared as numbers, -0.0 would equal 0.0, and NaN would differ from itself.
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _save(trainable: Adapter | FullWeights, folder: DataFolder, job: Job, made: Path, output: Path) -> None:
    """Write the parameters as the job did."""
    if isinstance(trainable, FullWeights):
        save_full(_start_model(folder, job), trainable, output, created_at=open_model_folder(made).manifest.created_at)
        return
    with safe_open(made / WEIGHTS_NAME, "pt") as file:
        trainable.metadata = dict(file.metadata() or {})
    trainable.save(output, is_mlm=read_config(made).is_mlm)


def _counted(rows: Iterable[Step], on_row: Callable[[int], None]) -> Iterator[StepRecord]:
    """The rows as records; reports each one as done when the next one is asked for."""
    for done, row in enumerate(rows, 1):
        yield record_of(row)
        on_row(done)
