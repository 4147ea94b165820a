"""From settings to a plan; and what the scheduler does with it."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pocketllm.daemon.errors import ModelNotReady
from pocketllm.daemon.scheduling.night import Ahead
from pocketllm.daemon.scheduling.planning import (
    BATCH,
    CHEAP_PROBES,
    ENOUGH_POSITIONS,
    LONGEST_STEP_SECONDS,
    SHARED_BATCH,
    JobRequest,
    Planned,
    enough_rows,
    method_message,
    plan_job,
    with_request,
)
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.errors import BadRequest, DoesNotFit, EngineError, ModelFileError
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.planning.memory_model import MB, JobPlan, predict
from pocketllm.engine.planning.shapes import adapted, read_shapes
from pocketllm.storage.tables import JobState
from tests.support.daemon.fixed_plan import PREDICTION, fixed_plan
from tests.support.daemon.scheduler_world import SchedulerWorld, scheduler_world
from tests.support.models.learning import imported
from tests.support.models.model_shapes import LLAMA_7B, SMOLLM2
from tests.support.models.tiny_models import tiny_llama_folder


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**{"method": "mezo", "probes": 1, **changes})


def changed(model_folder: ModelFolder, **manifest: Any) -> ModelFolder:
    """The model with another manifest."""
    return dataclasses.replace(model_folder, manifest=model_folder.manifest.model_copy(update=manifest))


class TestWithWishes:
    def test_what_is_not_wished_for_is_as_the_settings_say(self) -> None:
        base = settings(batch=3, probes=2, mode="full", rank=5)
        assert with_request(base, JobRequest()) == base
        assert with_request(base, JobRequest(batch=7, mode="lora")) == settings(batch=7, probes=2, mode="lora", rank=5)
        assert with_request(base, JobRequest(probes=9)).probes == 9

    def test_another_mode_has_other_lengths_unless_they_were_set(self) -> None:
        full = with_request(settings(), JobRequest(mode="full"))
        assert (full.step_size, full.epsilon) == (settings(mode="full").step_size, settings(mode="full").epsilon)
        assert full.step_size != settings().step_size
        assert with_request(settings(step_size=0.25), JobRequest(mode="full")).step_size == 0.25

    def test_the_most_at_once_follows_a_smaller_batch(self) -> None:
        base = settings(batch=8, micro_batch=4)
        expected = {2: 2, 4: 4, 16: 4, None: 4}
        assert {batch: with_request(base, JobRequest(batch=batch)).micro_batch for batch in expected} == expected


class TestPlanJob:
    def test_the_settings_come_through(self, tiny: ModelFolder) -> None:
        training = settings(batch=3, block_tokens=32, probes=2, rank=4, targets=("q_proj",), mode="lora", steps=17)
        found = plan_job(tiny, training)
        plan = found.plan
        assert (plan.mode, plan.steps, plan.batch, plan.block_tokens) == ("lora", 17, 3, 32)
        assert (plan.probes, plan.rank, plan.targets) == (2, 4, ("q_proj",))
        assert found.training is training
        assert found.prediction == predict(read_shapes(tiny), plan)
        assert found.reductions == []

    def test_by_default_all_maps_of_the_layers_but_those_of_queries_and_keys_are_adapted(self, root: Path) -> None:
        attention = {"llama": {"q_proj", "k_proj"}, "opt": {"q_proj", "k_proj"}, "roberta": {"query", "key"}}
        for name, left_out in attention.items():
            shapes = read_shapes(imported(root, name, "float32"))
            others = shapes.linears.keys() - adapted(shapes, settings().targets)
            assert {path.rpartition(".")[2] for path in others if ".layer" in path} == left_out, name

    def test_how_many_rows_pass_at_once(self, tiny: ModelFolder) -> None:
        rows: list[tuple[dict[str, int], int]] = [
            ({"batch": 4, "probes": 1}, 8),
            ({"batch": 4, "probes": 2}, 16),
            ({"batch": 4, "probes": 3}, 16),  # which share the loss at theta
            ({"batch": 8, "probes": 2, "micro_batch": 3}, 12),
            # More positions at once would be no faster, and memory would grow with the batch.
            ({"batch": 64, "block_tokens": 128}, ENOUGH_POSITIONS // 128),
            ({"batch": 1024, "block_tokens": 128}, ENOUGH_POSITIONS // 128),
            ({"batch": 1024, "block_tokens": 100}, ENOUGH_POSITIONS // 100),
            ({"batch": 64, "block_tokens": 4096}, 2),
            ({"batch": 64, "block_tokens": 128, "micro_batch": 64}, 128),
        ]
        for changes, expected in rows:
            assert plan_job(tiny, settings(**changes, steps=1)).plan.micro_batch == expected, changes

    def test_fewer_rows_of_a_wide_model_pass_at_once(self) -> None:
        """However much memory the job may take: a limit that was raised for another method once cost mezo 60 MB."""
        assert enough_rows(SMOLLM2, "lora", block_tokens=128) == ENOUGH_POSITIONS // 128
        assert enough_rows(LLAMA_7B, "lora", block_tokens=128) == 4  # 115 kB of activations a position
        assert enough_rows(LLAMA_7B, "full", block_tokens=128) == ENOUGH_POSITIONS // 128

    def test_what_does_not_fit_is_reduced(self, tiny: ModelFolder) -> None:
        training = settings(batch=64, micro_batch=64, block_tokens=1024, memory_bytes=50 * MB)
        found = plan_job(tiny, training)
        assert found.plan.micro_batch < 128 and found.plan.batch == 64
        assert found.prediction.working_bytes <= 50 * MB
        assert len(found.reductions) >= 1

    def test_as_many_probes_as_are_cheap(self, tiny_bf16: ModelFolder) -> None:
        """On a machine so slow that a step would last, there is one, and a larger batch."""
        for flops, probes, batch in ((1e12, CHEAP_PROBES[0], SHARED_BATCH), (1e6, 1, BATCH)):
            model_folder = changed(tiny_bf16, calibration={"gemm_flops": flops})
            found = plan_job(model_folder, settings(probes=None, steps=1))
            assert (found.plan.probes, found.plan.batch) == (probes, batch)
            if probes > 1:
                assert found.prediction.seconds_per_step <= LONGEST_STEP_SECONDS
            assert plan_job(model_folder, settings(probes=3, steps=1)).plan.probes == 3
            assert plan_job(model_folder, settings(probes=None, batch=5, steps=1)).plan.batch == 5
            assert plan_job(model_folder, settings(probes=None, mode="full", steps=1)).plan.probes == 1


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model whose maps' factors of rank 256 are too much for 50 MB, as three copies of each."""
    root = tmp_path_factory.mktemp("deep")
    import_model(str(tiny_llama_folder(root / "source", layers=6, hidden=64)), root, name="deep", dtype="float32")
    return open_model_folder(root / "deep")


class TestMethods:
    """Which method is chosen, and what is told of the others."""

    TIGHT: ClassVar[dict[str, Any]] = {"probes": None, "rank": 256, "targets": ("v_proj",), "memory_bytes": 50 * MB}

    @pytest.mark.parametrize("name", ["llama", "roberta"])
    def test_where_it_is_left_open_it_is_exact(self, name: str, root: Path) -> None:
        for method in ("auto", "exact"):
            training = settings(method=method, batch=8, block_tokens=16)
            found = plan_job(imported(root, name, "float32"), training)
            plan = found.plan
            assert (plan.method, plan.mode, plan.targets, plan.probes) == ("exact", "lora", (), 1)
            assert (plan.batch, plan.pass_blocks) == (8, 8)
            assert 1 <= plan.micro_batch <= 8
            assert {one.method: one.prediction for one in found.alternatives}["exact"] == found.prediction
            assert JobPlan(**json.loads(json.dumps(asdict(plan))) | {"targets": plan.targets}) == plan

    def test_graphs_are_made_of_few_positions_at_a_time(self, tiny: ModelFolder) -> None:
        rows = [({"batch": 8, "block_tokens": 64}, 8), ({"batch": 8, "block_tokens": 256}, 2), ({"micro_batch": 3}, 3)]
        for changes, expected in rows:
            assert plan_job(tiny, settings(method="exact", **changes, steps=1)).plan.micro_batch == expected, changes

    def test_what_does_not_fit_by_exact_is_planned_by_mezo(self, deep: ModelFolder) -> None:
        found = plan_job(deep, settings(method="auto", **self.TIGHT, steps=3))
        assert found.plan.method == "mezo"
        [exact, mezo] = found.alternatives
        assert (exact.method, exact.prediction, mezo.reason) == ("exact", None, None)
        assert exact.reason is not None and "training.memory_bytes allows 50 MB" in exact.reason
        assert mezo.prediction is not None
        assert method_message(found).startswith(f"mezo ({mezo.prediction.peak_bytes / 1e6:.0f} MB, ")
        assert method_message(found).endswith(f"per step); exact: {exact.reason}")

    def test_where_exact_is_asked_for_it_is_that_or_nothing(self, deep: ModelFolder) -> None:
        with pytest.raises(DoesNotFit, match="Set it to") as caught:
            plan_job(deep, settings(method="exact", **self.TIGHT, steps=3))
        enough = int(str(caught.value).partition("Set it to ")[2].split()[0])
        found = plan_job(deep, settings(method="exact", **{**self.TIGHT, "memory_bytes": enough}, steps=3))
        assert found.prediction.working_bytes <= enough

    def test_all_weights_are_trained_by_mezo(self, tiny: ModelFolder) -> None:
        plan = plan_job(tiny, settings(method="auto", mode="full", steps=3)).plan
        assert (plan.method, plan.mode) == ("mezo", "full")
        with pytest.raises(DoesNotFit, match=r"training\.memory_bytes allows 50 MB"):
            plan_job(tiny, settings(mode="full", memory_bytes=50 * MB, steps=1))
        with pytest.raises(BadRequest, match="Exact gradients train an adapter only"):
            plan_job(tiny, settings(method="exact", mode="full", steps=3))


@dataclass
class Planner:
    """Plans as told: with PREDICTION, or not at all."""

    error: EngineError | None = None
    asked: list[TrainingSettings] = field(default_factory=list)

    def __call__(self, training: TrainingSettings, ahead: Ahead) -> Planned:
        self.asked.append(training)
        if self.error is not None:
            raise self.error
        return fixed_plan(training, ahead)


@pytest.fixture
def planner() -> Planner:
    return Planner()


@pytest.fixture
def world(tmp_path: Path, planner: Planner) -> Iterator[SchedulerWorld]:
    """Enough text for a job, which is planned as told."""
    with scheduler_world(tmp_path, planner=planner) as made:
        made.add(30)
        yield made


class TestScheduler:
    def test_a_job_is_stored_with_its_settings_and_plan(self, world: SchedulerWorld, planner: Planner) -> None:
        requested = JobRequest(steps=7, mode="full", batch=5, probes=3)
        asked = world.scheduler.queue.request(requested, seed=0, immediate=True, now=world.clock.now)
        job = world.job(asked.id)
        assert (job.state, job.seed, job.immediate, job.model) == (JobState.QUEUED, 0, True, "tiny")
        assert (job.mode, job.total_steps, job.predicted_bytes) == ("full", 7, PREDICTION.peak_bytes)
        stored = TrainingSettings.model_validate(job.settings)
        assert (stored.mode, stored.batch, stored.probes, stored.steps) == ("full", 5, 3, 7)
        assert planner.asked == [stored]

    def test_a_request_that_cannot_be_planned_is_refused_at_once(self, world: SchedulerWorld, planner: Planner) -> None:
        errors: dict[EngineError, type[Exception]] = {
            DoesNotFit("Too large."): DoesNotFit,
            BadRequest("Packed."): BadRequest,
            ModelFileError("Broken."): ModelNotReady,
        }
        for error, kind in errors.items():
            planner.error = error
            with pytest.raises(kind, match=str(error)):
                world.request(immediate=True)
        assert world.store.jobs.page(after=None, limit=9) == []

    def test_what_cannot_fit_is_queued_once_for_the_worker(self, world: SchedulerWorld, planner: Planner) -> None:
        planner.error = DoesNotFit()
        world.tick()
        job = world.only_job()
        assert (job.state, job.predicted_bytes) == (JobState.RUNNING, None)
        world.store.jobs.fail(job.id, error=str(planner.error), now=world.clock.advance(1))
        for _ in range(3):
            world.tick()
        assert world.only_job().id == job.id
