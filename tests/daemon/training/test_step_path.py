"""A step is short to read: from the trainer's call to the committed row, few functions in few files."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch

from pocketllm.backprop.gradients import PassSize
from pocketllm.backprop.method import Exact, ExactPlan, fresh_adapter
from pocketllm.daemon.training.checkpoints import StoredRun
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.method import Method
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.method import MeZO, MeZOPlan
from pocketllm.storage.store import Store
from tests.support.learning import random_blocks, some_adapter
from tests.support.workers import queue_job

ROOT = Path(__file__).parents[3]
#: The model and the batches are not counted: they are what a step works on.
ROOMS = ("backprop", "daemon", "mezo", "storage")


@contextmanager
def recorded() -> Iterator[dict[str, set[str]]]:
    """File -> the functions of ours that are called meanwhile, but for comprehensions and lambdas."""
    found: dict[str, set[str]] = {}

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        path = Path(code.co_filename).resolve()
        if event == "call" and path.is_relative_to(ROOT) and not code.co_name.startswith("<"):
            name = str(path.relative_to(ROOT))
            if name.partition("/")[0] in ROOMS:
                found.setdefault(name, set()).add(code.co_qualname)

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


def mezo(model: LanguageModel) -> Method:
    adapter = some_adapter(model)
    model.set_parameters(adapter)
    plan = MeZOPlan(seed=1, epsilon=0.01, step_size=0.01, probes=7)
    return MeZO(lambda points, batch: model.losses_at(points, batch, 100), adapter, plan, lambda: None)


def exact(model: LanguageModel) -> Method:
    adapter = fresh_adapter(model, rank=4, seed=0)
    model.set_parameters(adapter)
    return Exact(
        model, adapter, ExactPlan(seed=1, rate=1e-3), PassSize(stored=160, micro_batch=80), to_start=lambda: None
    )


@pytest.mark.parametrize(("make", "functions", "files"), [(mezo, 15, 6), (exact, 41, 9)], ids=["mezo", "exact"])
@torch.no_grad()
def test_a_step_passes_through(
    tiny: ModelFolder, tmp_path: Path, make: Callable[[LanguageModel], Method], functions: int, files: int
) -> None:
    store = Store.open(tmp_path / "pocketllm.db")
    run = StoredRun(store, queue_job(store).id, tmp_path / "run")
    method = make(LanguageModel(tiny))
    with recorded() as found:
        run.append(method.step(1, random_blocks(4), remaining=1.0, share=1.0), seconds=1.0)
    store.close()
    assert (sum(map(len, found.values())), len(found)) == (functions, files), found
