"""Plans: how a job will run on a model, its predicted memory and time, and the reductions to fit into memory."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pocketllm.daemon.scheduling.night import NOT_KNOWN, Ahead, estimated_worth, fitting, most_steps, won_by_morning
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.errors import BadRequest, DoesNotFit
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.planning.memory_model import (
    MB,
    JobPlan,
    Method,
    Mode,
    Prediction,
    fit,
    graph_bytes,
    points_of,
    predict,
)
from pocketllm.engine.planning.shapes import Shapes, read_shapes

#: The methods that a request can name.
RequestedMethod = Literal["auto", "exact", "mezo"]
#: Positions in a pass beyond which matrix products get no faster: more would only cost memory.
ENOUGH_POSITIONS = 2048
#: Activations of a pass, at most: wide models reach full speed with fewer positions. Not in full mode, where each pass
#: perturbs all weights.
ENOUGH_ACTIVATION_BYTES = 64 * 2**20
#: Positions in a layer's graph, which takes many times the memory of a pass without one; and its size, which fewer
#: positions reach in wide layers.
GRAPH_POSITIONS, GRAPH_BYTES = 512, 80 * MB
#: Probes of a step of MeZO that share a loss, the most first; taken where a step lasts no longer than this.
CHEAP_PROBES, LONGEST_STEP_SECONDS = (15, 7), 5.0
#: Blocks a step; and where many directions share a batch of text. (A label is one target, and wants the larger batch.)
BATCH, SHARED_BATCH = 8, 4


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A method and its prediction."""

    method: Method
    prediction: Prediction | None  #: None where the method is not possible
    reason: str | None = None  #: why it is not


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan that fits, with its prediction."""

    training: TrainingSettings  #: that it was made from
    plan: JobPlan
    prediction: Prediction
    reductions: list[str]  #: a sentence for each thing that was reduced to make it fit
    nights: float = 0.0  #: usual nights that all steps take which the text is worth, or that were requested
    alternatives: list[Alternative] = field(default_factory=list)  #: each method, the chosen one among them


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A job's requested settings, within the limits of the settings of the same names; None: the setting's value."""

    steps: int | None = None
    mode: Mode | None = None
    method: RequestedMethod | None = None
    batch: int | None = None
    probes: int | None = None


def with_request(training: TrainingSettings, requested: JobRequest) -> TrainingSettings:
    """The settings of one job, with the requested values."""
    values: dict[str, Any] = asdict(requested)
    changes = {name: value for name, value in values.items() if value is not None}
    if requested.batch is not None and training.micro_batch is not None:
        changes["micro_batch"] = min(training.micro_batch, requested.batch)  # at most the batch
    explicit = training.model_dump(exclude_unset=True)  # another mode has other defaults
    return TrainingSettings.model_validate({**explicit, **changes})


def plan_job(model_folder: ModelFolder, training: TrainingSettings, ahead: Ahead = NOT_KNOWN) -> Planned:
    """Plan a job on an imported model: see `plan_shapes`. Raises ModelFileError, too."""
    return plan_shapes(read_shapes(model_folder), training, ahead)


def plan_shapes(shapes: Shapes, training: TrainingSettings, ahead: Ahead = NOT_KNOWN) -> Planned:
    """Plan a job on a model. Its number of steps is an estimate if the settings leave it to the worker.

    Of the methods that fit into memory, `auto` is the one that wins more by the morning. Raises DoesNotFit, naming the
    smallest sufficient memory_bytes; and BadRequest for a request that cannot be trained on this model.
    """
    found: dict[Method, Planned | DoesNotFit | BadRequest] = {}
    planners: dict[Method, Callable[..., Planned]] = {"exact": _exact, "mezo": _mezo}
    for method, planner in planners.items():
        try:
            found[method] = _for_the_night(planner(shapes, training), ahead)
        except (DoesNotFit, BadRequest) as error:
            found[method] = error
    possible = {method: won_by_morning(one.plan) for method, one in found.items() if isinstance(one, Planned)}
    best: Method = max(possible, key=possible.__getitem__, default="mezo")
    planned = found[best if training.method == "auto" else training.method]
    if not isinstance(planned, Planned):
        raise planned
    alternatives = [
        Alternative(method=method, prediction=one.prediction)
        if isinstance(one, Planned)
        else Alternative(method=method, prediction=None, reason=str(one))
        for method, one in found.items()
    ]
    return replace(planned, alternatives=alternatives)


def _for_the_night(planned: Planned, ahead: Ahead) -> Planned:
    """The plan with its number of steps."""
    a_step, steps = planned.prediction.seconds_per_step, planned.training.steps
    worth = estimated_worth(planned.plan, ahead.words) if steps == "auto" else steps
    most = min(worth, most_steps(planned.plan.method, first=ahead.first))
    now = min(most, fitting(ahead.seconds, a_step)) if steps == "auto" else steps
    return replace(
        planned,
        plan=replace(planned.plan, steps=now),
        prediction=replace(planned.prediction, seconds=a_step * now),
        nights=a_step * worth / ahead.seconds,
    )


def method_message(planned: Planned) -> str:
    """The message for the choice of a method: the prediction for each, or why it is not possible."""
    predictions = {
        one.method: f"{one.prediction.peak_bytes / 1e6:.0f} MB, {one.prediction.seconds_per_step:.2g} s per step"
        if one.prediction
        else str(one.reason)
        for one in planned.alternatives
    }
    others = [f"{method}: {text}" for method, text in predictions.items() if method != planned.plan.method]
    return f"{planned.plan.method} ({predictions[planned.plan.method]}); " + "; ".join(others)


def _exact(shapes: Shapes, training: TrainingSettings) -> Planned:
    batch = training.batch or BATCH
    positions = min(GRAPH_POSITIONS, GRAPH_BYTES // graph_bytes(shapes))
    micro_batch = min(batch, training.micro_batch or max(1, positions // training.block_tokens))
    its = {"probes": 1, "targets": (), "method": "exact", "pass_blocks": batch}
    return _fitted(shapes, training, batch=batch, micro_batch=micro_batch, **its)


def _mezo(shapes: Shapes, training: TrainingSettings) -> Planned:
    """Plan MeZO, with as many probes a step as are cheap unless the settings say how many.

    Several directions on a batch share the loss at theta, and learn more in the same time (docs/notes.md). But a
    kill costs a step, so steps stay short.
    """
    if training.probes is None and training.mode == "lora":
        for probes in CHEAP_PROBES:
            planned = _with_probes(shapes, training, probes=probes)
            if planned.prediction.seconds_per_step <= LONGEST_STEP_SECONDS:
                return planned
    return _with_probes(shapes, training, probes=training.probes or 1)


def _with_probes(shapes: Shapes, training: TrainingSettings, *, probes: int) -> Planned:
    points = points_of(probes)
    share = probes >= CHEAP_PROBES[-1] and not shapes.is_mlm
    batch = training.batch or (SHARED_BATCH if share else BATCH)
    if training.micro_batch is not None:
        micro_batch = max(2, points * min(batch, training.micro_batch))
    else:
        micro_batch = min(max(2, points * batch), enough_rows(shapes, training.mode, training.block_tokens))
    return _fitted(shapes, training, batch=batch, micro_batch=micro_batch, probes=probes, targets=training.targets)


def _fitted(shapes: Shapes, training: TrainingSettings, **chosen: Any) -> Planned:
    """A plan that fits. chosen: its other fields."""
    requested = JobPlan(
        mode=training.mode,
        steps=1,  # see _for_the_night
        block_tokens=training.block_tokens,
        rank=training.rank,
        compute_dtype=shapes.compute_dtype,
        **chosen,
    )
    plan, reductions = fit(shapes, requested, training.memory_bytes)
    return Planned(training=training, plan=plan, prediction=predict(shapes, plan), reductions=reductions)


def enough_rows(shapes: Shapes, mode: Mode, block_tokens: int) -> int:
    """The most rows that pass through the layers together unless the settings say more; an even number, at least 2."""
    positions = ENOUGH_POSITIONS
    if mode == "lora":
        positions = min(positions, ENOUGH_ACTIVATION_BYTES // shapes.position_bytes)
    return max(2, positions // block_tokens // 2 * 2)
