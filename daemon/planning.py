"""From settings to a plan: how a job will run on a model, what it will take, and what had to be reduced."""

import os
from dataclasses import dataclass, replace
from typing import Literal

from pocketllm.daemon.settings import TrainingSettings
from pocketllm.mezo.budget import GUIDED_RANK, JobPlan, Mode, Prediction, Shapes, fit, points_of, predict, read_shapes
from pocketllm.mezo.errors import DoesNotFit
from pocketllm.mezo.native import NativeModel

#: What may be asked for as a job's method.
MethodWish = Literal["auto", "guided", "mezo"]
#: Positions, of all rows together, beyond which matrix products get no faster: more would cost memory for nothing.
ENOUGH_POSITIONS = 2048
#: And bytes of activations that a job of an adapter stays below: wide models reach that speed with fewer positions. Not
#: in full mode, where each walk moves all weights.
ENOUGH_ACTIVATION_BYTES = 64 * 2**20
#: Probes of a step of MeZO that share a loss, the most first; taken where a step lasts no longer than this.
CHEAP_PROBES, LONGEST_STEP_SECONDS = (15, 7), 5.0
#: Blocks a step; and where many directions share a batch of text. (A label is one target, and wants the larger batch.)
BATCH, SHARED_BATCH = 8, 4


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan that fits, with what it is predicted to take."""

    training: TrainingSettings  #: that it was made from
    plan: JobPlan
    prediction: Prediction
    reductions: list[str]  #: a sentence for each thing that was reduced to make it fit


@dataclass(frozen=True, kw_only=True)
class JobWish:
    """What was asked for of a job, with the limits of the settings of the same names; None is what these say."""

    steps: int | None = None
    mode: Mode | None = None
    method: MethodWish | None = None
    batch: int | None = None
    probes: int | None = None


def with_wish(training: TrainingSettings, wish: JobWish) -> TrainingSettings:
    """The settings of one job: what was asked for in place of what they say. Its steps are the plan's."""
    wishes = {"mode": wish.mode, "method": wish.method, "batch": wish.batch, "probes": wish.probes}
    changes = {name: value for name, value in wishes.items() if value is not None}
    if wish.batch is not None and training.micro_batch is not None:
        changes["micro_batch"] = min(training.micro_batch, wish.batch)  # the most at once: it follows a smaller batch
    said = training.model_dump(exclude_unset=True)  # another mode has other defaults
    return TrainingSettings.model_validate({**said, **changes})


def plan_job(native: NativeModel, training: TrainingSettings, *, steps: int) -> Planned:
    """Plan a job of so many steps.

    Where the method is left open, it is the guide, if there is memory for it; whether it serves, the job itself finds
    out. Raises DoesNotFit, naming the smallest memory_bytes that would do; BadRequest for what cannot be trained on
    this model; or ModelFileError.
    """
    shapes = read_shapes(native)
    may_be_guided = training.method == "guided" or (
        training.method == "auto" and training.mode == "lora" and not shapes.masked
    )
    said: list[str] = []
    if may_be_guided:
        try:
            return _planned(native, shapes, training, steps, probes=None)
        except DoesNotFit as error:
            if training.method == "guided":
                raise
            said = [f"The guide does not fit, so the method is mezo. {error}"]
    planned = _mezo(native, shapes, training, steps)
    return replace(planned, reductions=[*said, *planned.reductions])


def _mezo(native: NativeModel, shapes: Shapes, training: TrainingSettings, steps: int) -> Planned:
    """With as many probes a step as are cheap, unless the settings say how many.

    Directions that share a batch share the loss at theta, too, and teach more in the same time (bench/README.md). But a
    step is what a kill costs.
    """
    if training.probes is None and training.mode == "lora":
        for probes in CHEAP_PROBES:
            planned = _planned(native, shapes, training, steps, probes=probes)
            if planned.prediction.seconds_per_step <= LONGEST_STEP_SECONDS:
                return planned
    return _planned(native, shapes, training, steps, probes=training.probes or 1)


def _planned(
    native: NativeModel, shapes: Shapes, training: TrainingSettings, steps: int, *, probes: int | None
) -> Planned:
    """probes: of MeZO; None: by the guide."""
    points = 1 if probes is None else points_of(probes)
    share = probes is not None and probes >= CHEAP_PROBES[-1] and not shapes.masked
    batch = training.batch or (SHARED_BATCH if share else BATCH)
    if training.micro_batch is not None:
        rows_at_once = max(2, points * min(batch, training.micro_batch))
    else:
        rows_at_once = min(max(2, points * batch), enough_rows(shapes, training.mode, training.block_tokens))
    wish = JobPlan(
        mode=training.mode,
        steps=steps,
        batch=batch,
        block_tokens=training.block_tokens,
        probes=probes or 1,
        rank=GUIDED_RANK if probes is None else training.rank,
        targets=training.targets,
        rows_at_once=rows_at_once,
        lanes=min(1 if shapes.packed else _cores(shapes), max(1, rows_at_once // 2)),
        compute_dtype=native.manifest.compute_dtype,
        method="guided" if probes is None else "mezo",
    )
    plan, reductions = fit(shapes, wish, training.memory_bytes)
    return Planned(training=training, plan=plan, prediction=predict(shapes, plan), reductions=reductions)


def enough_rows(shapes: Shapes, mode: Mode, block_tokens: int) -> int:
    """The most rows that pass through the layers together unless the settings say more; an even number, at least 2."""
    positions = ENOUGH_POSITIONS
    if mode == "lora":
        positions = min(positions, ENOUGH_ACTIVATION_BYTES // shapes.position_bytes)
    return max(2, positions // block_tokens // 2 * 2)


def _cores(shapes: Shapes) -> int:
    """Threads that torch computed with at import; else all that there are."""
    return int(shapes.calibration.get("threads") or os.cpu_count() or 1)
