"""What llama.cpp makes of an exported adapter: the probabilities that we have with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from pocketllm.engine.formats.gguf_lora import write_gguf_lora
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.llama_cpp import next_log_probabilities, write_base
from tests.support.models.learning import imported, some_adapter

#: No longer than a tiny model's window.
IDS = [5, 60, 70, 80, 100, 200, 1, 30]
#: Both compute in float32, in another order.
TOLERANCE = 2e-3
#: Far more than that; all the adapters here change more.
SEEN = 0.3

Numbers = NDArray[np.float64]


def ours(model: LanguageModel, adapter: Adapter | None) -> Numbers:
    model.set_parameters(adapter)
    with torch.inference_mode():
        logits = model.next_logits(torch.tensor([IDS]), DynamicCache())
    found: Numbers = logits.double().log_softmax(-1).numpy()
    return found


def apart(one: Numbers, other: Numbers) -> float:
    return float(np.abs(one - other).max())


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("llama", "llama"),
        pytest.param("mistral", "llama", marks=pytest.mark.slow),
        pytest.param("qwen2", "qwen2", marks=pytest.mark.slow),
        pytest.param("qwen3", "qwen3", marks=pytest.mark.slow),
    ],
)
def test_the_layers(root: Path, tmp_path: Path, name: str, architecture: str) -> None:
    model_folder = imported(root, name, "float32")
    base = write_base(tmp_path / "base.gguf", model_folder, architecture)
    model = LanguageModel(model_folder)
    before, adapter = ours(model, None), some_adapter(model, targets=None, size=0.4)
    assert apart(before, next_log_probabilities(base, IDS)) < TOLERANCE
    adapter.save(tmp_path / "it")
    write_gguf_lora(tmp_path / "it", model_folder, tmp_path / "it.gguf")
    expected = ours(model, adapter)
    assert apart(before, expected) > SEEN
    assert apart(expected, next_log_probabilities(base, IDS, lora=tmp_path / "it.gguf")) < TOLERANCE
