"""The table of the methods that `auto` takes, as the planner says (see bench.readme)."""

from __future__ import annotations

from bench.common.reference import markdown_table
from bench.nights.device import MODELS, Device
from pocketllm.daemon.scheduling.night import Ahead
from pocketllm.daemon.scheduling.planning import plan_shapes
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.errors import DoesNotFit
from pocketllm.engine.planning.memory_model import MB

_SPEED, _WORDS = 25, 4000
_LIMITS = (80, 90, 110, 130, 200, 360, 700)


def methods_table(_which: str) -> str:
    """For each model and limit, the method, and how many nights of 3 hours a job on 4,000 words takes."""
    rows = [[f"{model}, {shape[-1]}", *(_method(model, limit) for limit in _LIMITS)] for model, shape in MODELS.items()]
    return markdown_table(("model", *(f"{limit} MB" for limit in _LIMITS)), rows)


def _method(model: str, limit: int) -> str:
    try:
        training = TrainingSettings(memory_bytes=limit * MB)
        planned = plan_shapes(Device(model, _SPEED).shapes, training, Ahead(words=_WORDS))
    except DoesNotFit:
        return "-"
    return f"{planned.plan.method}, {planned.nights:.1f}"
