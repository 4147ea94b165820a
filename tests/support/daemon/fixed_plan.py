"""A plan for tests in which no model is looked at."""

from pocketllm.daemon.scheduling.night import Ahead
from pocketllm.daemon.scheduling.planning import Planned
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.planning.memory_model import JobPlan, Prediction

PREDICTION = Prediction(
    library_bytes=100,
    working_bytes=40,
    anonymous_bytes=110,
    file_bytes=60,
    peak_bytes=170,
    seconds_per_step=0.5,
    seconds=15.0,
)


def fixed_plan(training: TrainingSettings, ahead: Ahead) -> Planned:
    """What was asked for, as if it took PREDICTION."""
    plan = JobPlan(
        mode=training.mode,
        steps=30 if training.steps == "auto" else training.steps,
        batch=training.batch or 8,
        block_tokens=training.block_tokens,
        probes=training.probes or 1,
        rank=training.rank,
        targets=training.targets,
        micro_batch=2,
        compute_dtype="bfloat16",
    )
    return Planned(training=training, plan=plan, prediction=PREDICTION, reductions=[])
