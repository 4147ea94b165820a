"""Choosing the dtype to compute in, on real tiny models; and what an import makes of it."""

import math
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import FLOAT_DTYPES, ModelFolder, open_model_folder
from pocketllm.engine.planning.calibration import (
    ROWS,
    TIMED_ROWS,
    TOLERANCE,
    calibrate,
    choose_dtype,
    gemm_flops,
    mean_loss,
    passage,
)
from tests.support.models.learning import imported
from tests.support.models.tiny_models import import_and_open, loud_llama_folder, tiny_model_folder

EXACT = 3.5


@pytest.mark.parametrize(
    ("bfloat16", "float16", "stored", "chosen"),
    [
        (1.0, 1.0, "bfloat16", "float32"),
        (1.14, 1.0, "bfloat16", "float32"),  # not worth it
        (1.15, 1.0, "bfloat16", "bfloat16"),
        (1.16, 1.14, "float16", "bfloat16"),  # they tie, but one of them is not worth it
        (2.0, 3.0, "bfloat16", "float16"),  # clearly faster
        (3.0, 2.0, "float16", "bfloat16"),
        (2.0, 2.1, "int4", "bfloat16"),  # a tie
        (2.0, 2.1, "float32", "bfloat16"),
        (2.1, 2.0, "float16", "float16"),
        (None, 2.0, "bfloat16", "float16"),
        (None, None, "bfloat16", "float32"),
    ],
)
def test_the_fastest_is_chosen(bfloat16: float | None, float16: float | None, stored: str, chosen: str) -> None:
    """By the speeds over float32's; None: torch cannot multiply it here."""
    speeds = {"float32": 1.0, "bfloat16": bfloat16, "float16": float16}
    flops = {dtype: speed for dtype, speed in speeds.items() if speed is not None}
    assert choose_dtype(flops, stored=stored, exact=EXACT, loss_in=lambda _: EXACT) == (chosen, 0.0)


@pytest.mark.parametrize("loss", [EXACT + 1.5 * TOLERANCE, EXACT - 1.5 * TOLERANCE, math.nan, math.inf, None])
def test_a_fast_one_that_is_wrong_is_passed_over(loss: float | None) -> None:
    asked: list[str] = []

    def loss_in(dtype: str) -> float:
        asked.append(dtype)
        if dtype == "bfloat16":
            return EXACT - 0.25 * TOLERANCE
        if loss is None:
            raise RuntimeError("no such operation in Half")
        return loss

    flops = {"float32": 1.0, "bfloat16": 2.0, "float16": 4.0}
    dtype, deviation = choose_dtype(flops, stored="float16", exact=EXACT, loss_in=loss_in)
    assert (dtype, asked) == ("bfloat16", ["float16", "bfloat16"])
    assert deviation == pytest.approx(0.25 * TOLERANCE)
    # Where it is the only fast one, fp32 is left.
    del flops["bfloat16"]
    assert choose_dtype(flops, stored="float16", exact=EXACT, loss_in=loss_in) == ("float32", 0.0)


def test_a_first_product_that_is_slow_is_not_taken_for_an_emulated_one() -> None:
    readings = count()

    def clock() -> float:
        return time.perf_counter() + (1.0 if next(readings) else 0.0)  # the first product seems to take a second

    assert gemm_flops((64, 64), torch.float32, clock) > 1e6


def test_a_model_that_overflows_in_fp16_computes_in_something_else(tmp_path: Path) -> None:
    """In which every weight fits."""
    source = loud_llama_folder(tmp_path / "source", factor=2000)
    loud = import_and_open(source, tmp_path, name="loud", dtype="float16")
    blocks = passage(loud)
    losses = {dtype: mean_loss(loud, blocks, dtype) for dtype in FLOAT_DTYPES}
    assert not math.isfinite(losses["float16"])
    assert math.isfinite(losses["float32"])
    flops = {"float32": 1.0, "bfloat16": 2.0, "float16": 4.0}
    dtype, deviation = choose_dtype(flops, stored="float16", exact=losses["float32"], loss_in=losses.__getitem__)
    assert dtype != "float16"
    assert deviation <= TOLERANCE
    assert calibrate(loud, time.perf_counter).compute_dtype != "float16"


def test_a_model_without_a_finite_loss_is_refused(tmp_path: Path) -> None:
    broken = import_and_open(loud_llama_folder(tmp_path / "x", factor=1e30), tmp_path, name="broken", dtype="float32")
    with pytest.raises(ModelFileError, match=r"no finite loss, not even in float32.*Get the model again"):
        calibrate(broken, time.perf_counter)


def test_what_is_measured(tiny: ModelFolder, tmp_path: Path) -> None:
    for model_folder in (tiny, open_model_folder(tiny_model_folder(tmp_path, dtype="int4", hidden=64))):
        found = calibrate(model_folder, time.perf_counter)
        assert found.gemm_flops == found.gemm_flops_by_dtype[found.compute_dtype] > 0
        assert found.gemm_flops_by_dtype.keys() >= {"float32", "bfloat16"}
        assert 0 <= found.loss_deviation <= TOLERANCE
        assert 0 < found.forward_seconds < 5


def test_a_masked_model_guesses_what_is_behind_masks(root: Path) -> None:
    model_folder = imported(root, "roberta", "bfloat16")
    blocks = passage(model_folder)
    hidden = int((blocks.inputs == model_folder.tokenizer().mask_token_id).sum())
    assert hidden == blocks.tokens > 5
    assert math.isfinite(mean_loss(model_folder, blocks, "float32"))
    assert calibrate(model_folder, time.perf_counter).compute_dtype in FLOAT_DTYPES


def test_a_product_that_takes_too_long_is_estimated(tiny: ModelFolder) -> None:
    readings = count(0, 10)  # each product takes ten seconds, though it has few rows
    found = calibrate(tiny, lambda: float(next(readings)))
    assert next(readings) == (3 * 2 + 1) * 2 * 10  # three dtypes, two products each, and a forward pass
    assert (found.forward_seconds, found.forward_tokens % passage(tiny).inputs.numel()) == (10.0, 0)
    assert found.forward_tokens >= TIMED_ROWS * passage(tiny).inputs.numel()
    # Most of this model's products are from 32 to 64: two maps of each layer.
    assert found.gemm_flops == pytest.approx(2 * ROWS * 32 * 64 / (10 * ROWS / 32))
    assert (found.compute_dtype, found.loss_deviation) == ("float32", 0.0)


def test_what_was_measured_is_in_the_manifest(llama: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    def look(folder: Path) -> dict[str, Any]:
        assert folder.parent.name.startswith(".pocketllm-tiny-")
        assert open_model_folder(folder, verify=True).manifest.calibration is None
        return {"compute_dtype": "float16", "gemm_flops": 1e9, "library_file_bytes": 5}

    manifest = import_model(
        str(llama), tmp_path, name="tiny", progress=lambda now: stages.append(now.stage), calibrate=look
    )
    assert list(dict.fromkeys(stages)) == ["config", "tokenizer", "weights", "calibrate", "finish"]
    assert open_model_folder(tmp_path / "tiny").manifest == manifest
    assert (manifest.dtype, manifest.compute_dtype) == ("bfloat16", "float16")
    assert manifest.calibration == {"gemm_flops": 1e9, "library_file_bytes": 5}
    assert not list((tmp_path / "tiny").glob(".*"))


def test_without_a_measurement(llama: Path, tmp_path: Path) -> None:
    for dtype, computes in (("float16", "float16"), ("int4", "bfloat16")):
        manifest = import_model(str(llama), tmp_path, name=dtype, dtype=dtype, calibrate=lambda _: None)
        assert (manifest.compute_dtype, manifest.calibration) == (computes, None)
