"""The models that `pocketllm models suggest` knows: held to published sizes, and to the shapes of an imported model."""

import json
from pathlib import Path

import pytest

from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.planning.known_models import KNOWN, KnownModel
from pocketllm.engine.planning.shapes import read_shapes
from tests.support.tiny_models import tiny_llama_folder

#: Parameters, as published.
PUBLISHED = {
    "smollm2-135m-instruct": 134.5e6,
    "gemma-3-270m-it": 268e6,
    "smollm2-360m-instruct": 361.8e6,
    "qwen2.5-0.5b-instruct": 494e6,
    "qwen3-0.6b": 596e6,
    "llama-3.2-1b-instruct": 1.236e9,
    "qwen2.5-1.5b-instruct": 1.544e9,
    "smollm2-1.7b-instruct": 1.711e9,
}


def test_each_has_as_many_parameters_as_published() -> None:
    assert {model.name: model.parameters for model in KNOWN} == pytest.approx(PUBLISHED, rel=0.002)


def test_shapes_are_those_of_the_imported_model(tmp_path: Path) -> None:
    source = tiny_llama_folder(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    import_model(str(source), tmp_path, name="tiny", dtype="bfloat16")
    imported = read_shapes(open_model_folder(tmp_path / "tiny"))
    width = config["hidden_size"] // config["num_attention_heads"]
    known = KnownModel(
        "someone/Tiny",
        "Apache-2.0",
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        width * config["num_attention_heads"],
        width * config["num_key_value_heads"],
        config["vocab_size"],
    )
    shapes = known.shapes(compute_dtype=imported.compute_dtype, calibration=imported.calibration)
    assert (shapes.linears, shapes.head, shapes.dtype) == (imported.linears, imported.head, imported.dtype)
    assert shapes.weights_bytes == pytest.approx(imported.weights_bytes, rel=0.05)  # norms are left out
