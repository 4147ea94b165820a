"""How models are shown."""

import platform
from pathlib import Path
from typing import Any

import pytest

from pocketllm.cli.models import calibration_text, encoding_text, models_table, moved_text
from tests.support.rendering import rendered

CALIBRATION = {
    "loss_deviation": 0.00042,
    "gemm_flops_by_dtype": {"float32": 2.15e11, "bfloat16": 1.2345e12},
    "machine": platform.machine(),
}
MODEL = {
    "name": "smol",
    "parameters": 134_515_008,
    "weights_bytes": 269_060_000,
    "license": "apache-2.0",
    "source": "a [file].gguf",
    "default": True,
    "dtype": "bfloat16",
    "compute_dtype": "bfloat16",
    "quantization_error": None,
    "calibration": CALIBRATION,
}


def test_models_with_the_default_marked(tmp_path: Path) -> None:
    text = rendered(models_table([MODEL, MODEL | {"name": "other", "license": "", "default": False}], tmp_path))
    for part in ("smol * default", "134.5M", "269.1 MB", "apache-2.0", "a [file].gguf", "unknown"):
        assert part in text
    assert text.count("default") == 1
    assert "calibrate" not in text


def test_empty_list_of_models_says_how_to_get_one(tmp_path: Path) -> None:
    assert "pocketllm models add" in rendered(models_table([], tmp_path), 300)


def test_a_model_that_was_measured_elsewhere_is_named(tmp_path: Path) -> None:
    moved = MODEL | {"name": "other", "calibration": CALIBRATION | {"machine": "abacus"}}
    text = rendered(models_table([MODEL, moved], tmp_path), 300)
    assert f"other was measured on abacus, but this device is {platform.machine()}" in text
    assert "`pocketllm models calibrate other`" in text
    assert "calibrate smol" not in text
    assert moved_text(MODEL | {"calibration": None}) == ""


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"dtype": "bfloat16", "compute_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16", "compute_dtype": "float32"}, "bfloat16, computes in fp32"),
        (
            {"dtype": "int4", "compute_dtype": "bfloat16", "quantization_error": 0.0718},
            "int4, error 7.2 %, computes in bf16",
        ),
    ],
)
def test_encoding(model: dict[str, Any], text: str) -> None:
    assert encoding_text(MODEL | model) == text


def test_calibration() -> None:
    assert calibration_text(MODEL) == (
        "smol computes in bf16 here, 0.0004 nats per token from fp32's loss. "
        "Billion operations per second: fp32 215, bf16 1,234."
    )
    assert calibration_text(MODEL | {"compute_dtype": "float32"}).startswith("smol computes in fp32 here. ")
