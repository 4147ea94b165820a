"""What a job is predicted to take, and how a plan is made to fit."""

import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pocketllm.engine.errors import BadRequest, DoesNotFit, ModelFileError
from pocketllm.engine.formats.model_folder import DTYPES, ModelFolder, open_model_folder
from pocketllm.engine.planning.memory_model import (
    MB,
    MIN_ROWS,
    MIN_TOKENS,
    UNPACK_SECONDS,
    JobPlan,
    fit,
    predict,
    samples_at_once,
)
from pocketllm.engine.planning.shapes import Shapes, adapted, read_shapes
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import imported
from tests.support.models.model_shapes import LLAMA_7B, SMOLLM2, llama
from tests.support.models.tiny_architectures import ARCHITECTURES
from tests.support.models.tiny_models import tiny_model_folder

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Family -> how many tensors as wide as its widest output exist at once: a gate is one more, and so are the queries of
#: Qwen 3, which are as wide here.
AT_ONCE = dict.fromkeys(ARCHITECTURES, 3) | {"qwen3": 4, "opt": 2, "opt_projected": 2, "roberta": 2}
PLAN = JobPlan(
    mode="lora",
    steps=100,
    batch=8,
    block_tokens=128,
    probes=1,
    rank=8,
    targets=TARGETS,
    micro_batch=16,
    compute_dtype="bfloat16",
)
#: Exact gradients of 8 blocks, all of which go through together.
EXACT_PLAN = replace(PLAN, method="exact", targets=(), micro_batch=4, pass_blocks=8)


def working(shapes: Shapes, plan: JobPlan) -> int:
    return predict(shapes, plan).working_bytes


def smallest(shapes: Shapes, plan: JobPlan) -> int:
    """The memory_bytes that the refusal names."""
    with pytest.raises(DoesNotFit) as caught:
        fit(shapes, plan, 1)
    sentence = str(caught.value)
    named = int(sentence.partition("Set it to ")[2].split()[0])
    assert f"at least {named // MB} MB beyond the libraries" in sentence
    assert "allows 0 MB" in sentence
    return named


@st.composite
def plans(draw: st.DrawFn) -> JobPlan:
    probes, batch = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    return replace(
        PLAN,
        mode=draw(st.sampled_from(["lora", "full"])),
        steps=draw(st.integers(1, 1000)),
        batch=batch,
        block_tokens=draw(st.integers(2, 4096)),
        probes=probes,
        rank=draw(st.integers(1, 256)),
        micro_batch=2 * probes * draw(st.integers(1, batch)),
    )


@st.composite
def exact_plans(draw: st.DrawFn) -> JobPlan:
    batch = draw(st.integers(1, 64))
    return replace(
        EXACT_PLAN,
        batch=batch,
        pass_blocks=batch,
        micro_batch=draw(st.integers(1, batch)),
        block_tokens=draw(st.integers(2, 4096)),
        rank=draw(st.integers(1, 256)),
    )


class TestReadShapes:
    @pytest.mark.parametrize(
        ("architecture", "dtype"),
        [*((name, "bfloat16") for name in ARCHITECTURES), ("llama", "int8"), ("llama", "int4")],
    )
    def test_the_maps_are_those_that_the_model_really_has(self, root: Path, architecture: str, dtype: str) -> None:
        model_folder = imported(root, architecture, dtype)
        shapes, model = read_shapes(model_folder), LanguageModel(model_folder)
        there = {path: (linear.out_features, linear.in_features) for path, linear in model.linears.items()}
        assert shapes.linears == there
        assert shapes.head == model.head.weight.shape
        assert shapes.packed == (dtype != model_folder.manifest.compute_dtype)
        assert shapes.weights_bytes == model_folder.weights.stat().st_size
        assert 0 < shapes.layer_bytes < shapes.weights_bytes / 2
        assert shapes.widest_at_once == AT_ONCE[architecture]

    def test_a_map_as_wide_as_the_vocabulary_is_no_head(self, tmp_path: Path) -> None:
        model_folder = open_model_folder(tiny_model_folder(tmp_path, hidden=160, vocab=320))  # intermediate size 320
        shapes = read_shapes(model_folder)
        assert shapes.head == (320, 160)
        assert shapes.linears["model.layers.0.mlp.up_proj"] == (320, 160)
        assert (shapes.hidden, shapes.widest, shapes.widest_at_once, shapes.largest) == (160, 320, 3, 320 * 160)

    def test_a_broken_folder_is_named(self, tmp_path: Path, tiny: ModelFolder) -> None:
        model_folder = open_model_folder(Path(shutil.copytree(tiny.path, tmp_path / "tiny")))
        config = model_folder.path / "config.json"
        harms: dict[str, Callable[[], object]] = {
            r"FileNotFoundError: .*model\.safetensors": model_folder.weights.unlink,
            "KeyError: 'vocab_size'": lambda: config.write_text("{}"),
            "JSONDecodeError: ": lambda: config.write_text("{"),
            r"FileNotFoundError: .*config\.json": config.unlink,
        }
        for problem, harm in harms.items():
            harm()
            named = rf"The model in .*tiny cannot be read \({problem}.*\)\. Import it again\."
            with pytest.raises(ModelFileError, match=named):
                read_shapes(model_folder)


class TestPredict:
    @given(plans(), st.sampled_from([SMOLLM2, LLAMA_7B]))
    def test_the_parts_add_up(self, plan: JobPlan, shapes: Shapes) -> None:
        found = predict(shapes, plan)
        assert found.peak_bytes == found.anonymous_bytes + found.file_bytes
        assert found.anonymous_bytes - found.working_bytes < found.library_bytes
        assert found.seconds == pytest.approx(found.seconds_per_step * plan.steps)
        assert (found.kept_bytes, found.kept_seconds) == (0, 0), "MeZO needs no activations"
        assert min(astuple(found)[:-2]) > 0

    @given(plans() | exact_plans(), st.sampled_from([SMOLLM2, LLAMA_7B]), st.integers(1, 500))
    def test_more_of_anything_never_takes_less(self, plan: JobPlan, shapes: Shapes, more: int) -> None:
        now = predict(shapes, plan)
        for name in ("block_tokens", "rank", "micro_batch", "pass_blocks"):
            changed = replace(plan, **{name: getattr(plan, name) + more})
            assert working(shapes, changed) >= now.working_bytes, name
        for name in ("block_tokens", "batch", "probes"):
            changed = replace(plan, **{name: getattr(plan, name) + more})
            assert predict(shapes, changed).seconds_per_step >= now.seconds_per_step, name

    @given(plans(), st.integers(1, 1024), st.integers(1, 64))
    def test_memory_depends_on_what_passes_at_once_and_not_on_the_batch(
        self, plan: JobPlan, batch: int, probes: int
    ) -> None:
        # Where all weights are trained, each point of a walk has its own.
        probes = plan.probes if plan.mode == "full" else probes
        changed = replace(plan, batch=batch, probes=probes)
        assert working(SMOLLM2, changed) == working(SMOLLM2, plan)

    def test_only_adapted_maps_cost(self) -> None:
        fewer = replace(PLAN, targets=("q_proj", "v_proj"))
        assert set(adapted(SMOLLM2, fewer.targets).values()) == {(576, 576)}
        assert working(SMOLLM2, fewer) < working(SMOLLM2, PLAN)

    def test_all_weights_cost_themselves_and_some_rows_of_both_sides_with_their_noise(self) -> None:
        full = replace(PLAN, mode="full")
        taken = SMOLLM2.weights_bytes + 3 * 2 * SMOLLM2.largest
        assert taken < working(SMOLLM2, full) < taken + 100 * MB
        assert predict(SMOLLM2, full).file_bytes < predict(SMOLLM2, PLAN).file_bytes

    def test_what_is_packed_costs_some_dense_rows_and_the_same_in_float32(self) -> None:
        stored = {dtype: replace(SMOLLM2, dtype=dtype) for dtype in DTYPES}
        plain, int8, int4 = (working(stored[dtype], PLAN) for dtype in ("bfloat16", "int8", "int4"))
        assert int8 - plain == pytest.approx(2 * 2 * SMOLLM2.largest, abs=1)
        assert int4 == int8
        kept = replace(LLAMA_7B, dtype="bfloat16")
        assert working(LLAMA_7B, PLAN) - working(kept, PLAN) < 2 * LLAMA_7B.largest / 3
        assert working(stored["float32"], PLAN) == int8

    def test_seven_billion_weights_fit_into_a_gigabyte(self) -> None:
        plan = replace(PLAN, batch=2, block_tokens=64, micro_batch=4)
        assert predict(LLAMA_7B, plan).peak_bytes < 2**30

    def test_what_was_measured_at_import_is_used(self) -> None:
        measured = {"gemm_flops": 40e9, "library_anonymous_bytes": 100 * MB, "library_file_bytes": 50 * MB}
        here = replace(SMOLLM2, calibration=measured)
        assert predict(here, PLAN).library_bytes == 150 * MB
        assert predict(here, PLAN).seconds == pytest.approx(predict(SMOLLM2, PLAN).seconds / 2)

    def test_a_measured_forward_tells_the_time_of_a_step(self) -> None:
        measured = {"gemm_flops": 1e15, "forward_seconds": 3.0, "forward_tokens": 1000}
        for shapes in (SMOLLM2, LLAMA_7B):
            unpacking = shapes.multiplied * UNPACK_SECONDS if shapes.packed else 0
            here = replace(shapes, calibration=measured)
            expected = 2 * PLAN.batch * PLAN.block_tokens * (3.0 - unpacking) / 1000 + unpacking
            assert predict(here, PLAN).seconds_per_step == pytest.approx(expected)
        # Never less than its products take.
        quick = replace(SMOLLM2, calibration=measured | {"gemm_flops": 1e9})
        assert predict(quick, PLAN).seconds_per_step > 100


class TestExact:
    def test_what_memory_is_left_keeps_activations(self) -> None:
        kept = replace(EXACT_PLAN, kept_layers=SMOLLM2.layers)
        assert fit(SMOLLM2, EXACT_PLAN, working(SMOLLM2, kept)) == (kept, [])
        faster, slower = predict(SMOLLM2, kept), predict(SMOLLM2, EXACT_PLAN)
        assert faster.kept_bytes == faster.working_bytes - slower.working_bytes > 0
        assert faster.kept_seconds == pytest.approx(slower.seconds_per_step - faster.seconds_per_step)

    def test_where_it_is_short_fewer_blocks_at_a_time_keep_more_layers(self) -> None:
        half = replace(EXACT_PLAN, kept_layers=SMOLLM2.layers // 2)
        plan, said = fit(SMOLLM2, EXACT_PLAN, working(SMOLLM2, half))
        assert said == [] and plan.pass_blocks < EXACT_PLAN.pass_blocks and plan.kept_layers > half.kept_layers
        assert predict(SMOLLM2, plan).seconds_per_step < predict(SMOLLM2, half).seconds_per_step

    def test_speed_is_given_up_before_length(self) -> None:
        limit = working(SMOLLM2, replace(EXACT_PLAN, micro_batch=1, pass_blocks=1))
        plan, said = fit(SMOLLM2, EXACT_PLAN, limit)
        assert plan.block_tokens == EXACT_PLAN.block_tokens
        assert all(sentence.endswith("slower, with the same result.") for sentence in said)
        shorter, said = fit(SMOLLM2, EXACT_PLAN, limit - MB)
        assert (shorter.micro_batch, shorter.pass_blocks) == (1, 1)
        assert shorter.block_tokens < EXACT_PLAN.block_tokens and "shorter blocks" in said[-1]


class TestFit:
    def test_what_fits_is_left_as_it_is(self) -> None:
        limit = working(SMOLLM2, PLAN)
        assert fit(SMOLLM2, PLAN, limit) == (PLAN, [])
        assert fit(SMOLLM2, PLAN, limit - 1) != (PLAN, [])

    def test_first_fewer_rows_then_shorter_ones(self) -> None:
        few = replace(PLAN, micro_batch=MIN_ROWS[PLAN.method])
        plan, said = fit(SMOLLM2, PLAN, working(SMOLLM2, replace(PLAN, micro_batch=8)))
        assert (plan.micro_batch, plan.block_tokens) == (8, 128)
        [sentence] = said
        assert "was reduced from 16 to 8" in sentence and "training.memory_bytes (" in sentence

        assert fit(SMOLLM2, PLAN, working(SMOLLM2, few))[0] == few
        limit = working(SMOLLM2, replace(few, block_tokens=32))
        plan, said = fit(SMOLLM2, PLAN, limit)
        assert plan == replace(few, block_tokens=32)
        assert "rows that pass through the layers together was reduced from 16 to 2:" in said[0]
        assert "training.block_tokens was reduced from 128 to 32:" in said[1]

    @given(plans(), st.sampled_from([SMOLLM2, LLAMA_7B]))
    def test_the_smallest_limit_that_is_named_is_the_smallest(self, requested: JobPlan, shapes: Shapes) -> None:
        assume(requested.mode == "lora" or shapes is SMOLLM2)
        limit = smallest(shapes, requested)
        plan, _ = fit(shapes, requested, limit)
        assert working(shapes, plan) <= limit
        with pytest.raises(DoesNotFit, match=f"Set it to {limit} or more"):
            fit(shapes, requested, limit - MB)

    @given(plans() | exact_plans(), st.integers(0, 2000))
    def test_a_plan_fits_and_never_asks_for_more_than_was_wished(self, requested: JobPlan, more: int) -> None:
        limit = smallest(SMOLLM2, requested) + more * MB
        plan, said = fit(SMOLLM2, requested, limit)
        assert working(SMOLLM2, plan) <= limit
        fewest = MIN_ROWS[requested.method]
        assert fewest <= plan.micro_batch <= requested.micro_batch
        assert min(MIN_TOKENS, requested.block_tokens) <= plan.block_tokens <= requested.block_tokens
        names = ("micro_batch", "pass_blocks", "block_tokens")
        reduced = sum(getattr(plan, name) < getattr(requested, name) for name in names)
        as_wished = {name: getattr(requested, name) for name in names}
        assert replace(plan, **as_wished, kept_layers=0) == requested
        if requested.method == "exact":
            assert min(plan.micro_batch, requested.pass_blocks) <= plan.pass_blocks <= requested.pass_blocks
            # Fewer blocks at a time may be faster, and are no reduction then.
            assert len(said) <= reduced
        else:
            assert plan.micro_batch % 2 == 0
            assert plan.block_tokens == requested.block_tokens or plan.micro_batch == fewest
            assert len(said) == reduced

    def test_what_cannot_be_trained_at_all_is_refused(self) -> None:
        full = replace(PLAN, mode="full")
        no_such_map = replace(PLAN, targets=("fc1",))
        no_layers = replace(SMOLLM2, linears={"map": (9, 9)})
        refused = (
            (LLAMA_7B, full, r"some is stored as int4\. Import it as bfloat16, or train an adapter"),
            (SMOLLM2, no_such_map, r"\(fc1\) is a linear map of some\. Name some of these: down_proj, gate_proj"),
            (SMOLLM2, replace(EXACT_PLAN, mode="full"), "train an adapter only"),
            (no_layers, EXACT_PLAN, "no list of layers, as exact gradients require"),
        )
        for shapes, plan, sentence in refused:
            with pytest.raises(BadRequest, match=sentence):
                fit(shapes, plan, 10**12)


class TestSamplesAtOnce:
    def test_fewer_of_a_larger_model_and_at_least_one(self) -> None:
        qwen = llama(hidden=1024, wide=3072, layers=28, vocabulary=151936)
        # Measured: 32 at once of a model of SmolLM2's shapes took 90 MB, of one of Qwen3-0.6B's 376, and 8 of that 90.
        assert samples_at_once(SMOLLM2, 32, 360 * MB) == 32
        assert samples_at_once(qwen, 32, 360 * MB) == 16
        assert samples_at_once(qwen, 32, 400 * MB) == 32
        assert samples_at_once(qwen, 32, 1) == 1
