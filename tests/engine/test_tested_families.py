"""Every family in the table: loss and gradients are transformers' own, on a tiny model of it; and suggestions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from pocketllm.backprop.gradients import PassSize
from pocketllm.engine.errors import UnsupportedModel
from pocketllm.engine.formats.model_folder import TESTED_FAMILIES, ModelFolder
from pocketllm.engine.formats.tokenizer import open_tokenizer
from pocketllm.engine.generate.suggestions import Suggester, Typed
from pocketllm.engine.generate.vocabulary import Vocabulary
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.backpropagation import layers_adapter, layerwise, whole_gradients, worst_error
from tests.support.models.learning import random_blocks, transformers_model
from tests.support.models.tiny_architectures import ARCHITECTURES, DECODER, imported_config

#: Their own tests: test_backprop.py has them, with what is special about each.
ELSEWHERE = ("opt", "roberta")
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
#: What a family's config needs besides the usual sizes.
MORE: dict[str, dict[str, Any]] = {
    "helium": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "minicpm3": {**_LATENT, "num_key_value_heads": 4, "head_dim": 8},
}


def imported(family: str, folder: Path) -> ModelFolder:
    """A tiny random model of a family, which is in `folder`/source as a Hugging Face folder."""
    return imported_config(AutoConfig.for_model(family, **{**DECODER, **MORE.get(family, {})}), folder)


def suggest(model_folder: ModelFolder) -> None:
    model, (tokenizer, decoding) = LanguageModel(model_folder), open_tokenizer(model_folder)
    suggester = Suggester(model, Vocabulary(tokenizer, model.head.at(None).vocabulary, decoding.stop_ids))
    for text in ("Wind w", "Wind wes"):
        typed = Typed.of(text, None)
        suggester.suggest(tokenizer(typed.context)["input_ids"], typed, n=3)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in TESTED_FAMILIES if family not in ELSEWHERE])
def test_a_family_is_computed_as_transformers_does(tmp_path: Path, family: str) -> None:
    model_folder = imported(family, tmp_path)
    model, parts = LanguageModel(model_folder, dtype=torch.float64), [(random_blocks(5, 20), 1.0)]
    adapter = layers_adapter(model)
    reference = transformers_model(tmp_path / "source")
    losses, expected = whole_gradients(reference, adapter, parts)
    found, gradients = layerwise(model, adapter, PassSize(stored=10_000, micro_batch=10_000), parts)
    assert found == pytest.approx(losses, rel=1e-9)
    assert worst_error(gradients, expected) <= 1e-9
    suggest(model_folder)


def test_those_with_tests_of_their_own_have_them() -> None:
    assert set(ELSEWHERE) <= ARCHITECTURES.keys()


@pytest.mark.slow
def test_a_model_that_keeps_a_state_says_that_it_cannot_suggest(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="cannot suggest words"):
        suggest(imported("lfm2", tmp_path))
