"""Which models can be learned: causal language models, and RoBERTa, which fills in masks."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from pocketllm.engine.errors import UnsupportedModel

#: Family -> its masked language model. Other encoders name the parts of their head differently.
MASKED_FAMILIES = {"roberta": "RobertaForMaskedLM"}


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForMaskedLM]:
    """Return the class of transformers whose `from_config` builds the language model of `config`.

    Raises UnsupportedModel when `config` is for another task, for more than text, or for two models in one.
    """
    family = config.model_type
    name = MASKED_FAMILIES.get(family) or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family)
    declared = config.architectures or [name or family]
    if family not in MASKED_FAMILIES and family in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        # Their causal classes are encoders with a mask put on, made for the second half of a translator.
        name = None
    if name not in declared or config.is_encoder_decoder or config.get_text_config() is not config:
        raise UnsupportedModel(
            f"Its config describes a {declared[0]}, which is neither a text-only causal language model (such as "
            f"LlamaForCausalLM) nor {' or '.join(MASKED_FAMILIES.values())}. Choose another model."
        )
    if family not in MASKED_FAMILIES:
        return AutoModelForCausalLM
    if getattr(config, "is_decoder", False):
        raise UnsupportedModel(
            f"Its config makes {name} a decoder (is_decoder), which does not see the words behind a mask. Choose "
            "another model."
        )
    return AutoModelForMaskedLM
