"""Which configs describe a model that can be learned."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import (
    BartConfig,
    BertConfig,
    Gemma3Config,
    LlamaConfig,
    MarianConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from pocketllm.engine.errors import UnsupportedModel
from pocketllm.engine.formats.architectures import auto_class

DECODER = {"is_decoder": True}
#: A kind of config, what it names as its architecture, its settings, and what the refusal says.
UNSUPPORTED: tuple[tuple[Callable[..., PreTrainedConfig], str | None, dict[str, Any], str], ...] = (
    (LlamaConfig, "LlamaModel", {}, "describes a LlamaModel"),
    (BertConfig, "BertForMaskedLM", {}, "describes a BertForMaskedLM.*nor RobertaForMaskedLM"),
    (BertConfig, "BertLMHeadModel", DECODER, "describes a BertLMHeadModel"),
    (T5Config, None, {}, "describes a t5"),
    (BartConfig, "BartForCausalLM", {}, "describes a BartForCausalLM"),
    (MarianConfig, "MarianForCausalLM", {}, "describes a MarianForCausalLM"),
    (Gemma3Config, "Gemma3ForConditionalGeneration", {}, "text-only causal language model"),
    (RobertaConfig, "RobertaForSequenceClassification", {}, "describes a RobertaForSequenceClassification"),
    (RobertaConfig, "RobertaForMaskedLM", DECODER, "makes RobertaForMaskedLM a decoder"),
)


def test_what_cannot_be_learned_is_refused(subtests: pytest.Subtests) -> None:
    for make, name, settings, complaint in UNSUPPORTED:
        config = make(architectures=[name] if name else None, **settings)
        with subtests.test(complaint), pytest.raises(UnsupportedModel, match=f"{complaint}.* Choose another model"):
            auto_class(config)
