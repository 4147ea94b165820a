"""What llama.cpp makes of an exported adapter: the probabilities that we have with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from pocketllm.engine.formats.gguf_lora import write_gguf_lora
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.learning import imported, some_adapter
from tests.support.llama_cpp import next_log_probabilities, write_base

#: No longer than a tiny model's window.
IDS = [5, 60, 70, 80, 100, 200, 1, 30]
#: Both compute in float32, in another order.
TOLERANCE = 2e-3
#: Far more than that; all the adapters here change more.
SEEN = 0.3

Numbers = NDArray[np.float64]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def ours(model: LanguageModel, adapter: Adapter | None) -> Numbers:
    model.set_parameters(adapter)
    with torch.inference_mode():
        logits = model.next_logits(torch.tensor([IDS]), DynamicCache())
    found: Numbers = logits.double().log_softmax(-1).numpy()
    return found


def apart(one: Numbers, other: Numbers) -> float:
    return float(np.abs(one - other).max())


@pytest.fixture(params=[("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")], ids=str)
def family(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> tuple[ModelFolder, Path]:
    """A tiny model, and the same as llama.cpp's base file."""
    name, architecture = request.param
    model_folder = imported(root, name, "float32")
    return model_folder, write_base(tmp_path / "base.gguf", model_folder, architecture)


def test_the_layers(family: tuple[ModelFolder, Path], tmp_path: Path) -> None:
    model_folder, base = family
    model = LanguageModel(model_folder)
    before, adapter = ours(model, None), some_adapter(model, targets=None, size=0.4)
    assert apart(before, next_log_probabilities(base, IDS)) < TOLERANCE
    adapter.save(tmp_path / "it")
    write_gguf_lora(tmp_path / "it", model_folder, tmp_path / "it.gguf")
    expected = ours(model, adapter)
    assert apart(before, expected) > SEEN
    assert apart(expected, next_log_probabilities(base, IDS, lora=tmp_path / "it.gguf")) < TOLERANCE
