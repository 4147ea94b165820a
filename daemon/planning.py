"""From settings to a plan: how a job will run on a model, what it will take, and what had to be reduced."""

import os
from dataclasses import dataclass

from pocketllm.daemon.settings import TrainingSettings
from pocketllm.mezo.budget import JobPlan, Mode, Prediction, Shapes, fit, predict, read_shapes
from pocketllm.mezo.native import NativeModel

#: Positions, of all rows together, beyond which matrix products get no faster: more would cost memory for nothing.
ENOUGH_POSITIONS = 2048


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan that fits, with what it is predicted to take."""

    training: TrainingSettings  #: that it was made from
    plan: JobPlan
    prediction: Prediction
    reductions: list[str]  #: a sentence for each thing that was reduced to make it fit


def with_wishes(
    training: TrainingSettings, *, mode: Mode | None = None, batch: int | None = None, probes: int | None = None
) -> TrainingSettings:
    """The settings of one job: what was asked for, which has the limits of the settings, in place of what they say."""
    wishes = {"mode": mode, "batch": batch, "probes": probes}
    changes = {name: value for name, value in wishes.items() if value is not None}
    if batch is not None and training.micro_batch is not None:
        changes["micro_batch"] = min(training.micro_batch, batch)  # the most at once: it follows a smaller batch
    return TrainingSettings.model_validate({**training.model_dump(), **changes})


def plan_job(native: NativeModel, training: TrainingSettings, *, steps: int) -> Planned:
    """Plan a job of so many steps.

    Raises DoesNotFit, naming the smallest memory_bytes that would do; BadRequest for what cannot be trained on this
    model; or ModelFileError.
    """
    shapes = read_shapes(native)
    points = 2 * training.probes
    if training.micro_batch is not None:
        rows_at_once = points * training.micro_batch
    else:
        enough = max(1, ENOUGH_POSITIONS // training.block_tokens)
        rows_at_once = min(points * training.batch, max(2, enough - enough % 2))
    wish = JobPlan(
        mode=training.mode,
        steps=steps,
        batch=training.batch,
        block_tokens=training.block_tokens,
        probes=training.probes,
        rank=training.rank,
        targets=training.targets,
        rows_at_once=rows_at_once,
        lanes=min(1 if shapes.packed else _cores(shapes), max(1, rows_at_once // 2)),
        compute_dtype=native.manifest.compute_dtype,
    )
    plan, reductions = fit(shapes, wish, training.memory_bytes)
    return Planned(training=training, plan=plan, prediction=predict(shapes, plan), reductions=reductions)


def _cores(shapes: Shapes) -> int:
    """Threads that torch computed with at import; else all that there are."""
    return int(shapes.calibration.get("threads") or os.cpu_count() or 1)
