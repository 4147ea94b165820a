"""Tiny random models of every family that can be imported, as Hugging Face folders in float32.

Their sizes are odd on purpose: a vocabulary that nothing divides, windows shorter than the text, and norms and biases
that are not the ones and zeros of a fresh model, so that a tensor in the wrong place shows in the output.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from pocketllm.engine.formats.model_folder import WEIGHTS_NAME, ModelFolder
from pocketllm.engine.formats.quantization import GROUPS, MINIMA, SCALES, unpack
from tests.support.models.tiny_models import byte_tokenizer, import_and_open, save_with_tokenizer

#: At least the byte tokenizer's 259 tokens and "<mask>"; prime.
ODD_VOCABULARY = 263
#: In tokens; shorter than any text that a test is about.
WINDOW = 8
MASK_TOKEN = "<mask>"

_COMMON: dict[str, Any] = {
    "vocab_size": ODD_VOCABULARY,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
#: Hidden and intermediate sizes can be packed as int8 and as int4.
_SIZES = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}
#: What every decoder below but OPT has in common.
DECODER: dict[str, Any] = {**_COMMON, **_SIZES, "num_key_value_heads": 2}
_OPT: dict[str, Any] = {**_COMMON, "init_std": 0.2}


def masking_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer with a mask token, "<mask>", behind the others."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    return tokenizer


#: The families, or odd members of them, by name.
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    # Grouped queries and tied embeddings.
    "llama": LlamaConfig(**DECODER, tie_word_embeddings=True),
    # Biases on queries, keys and values, and an output head of its own.
    "qwen2": Qwen2Config(**DECODER, tie_word_embeddings=False),
    # Norms on queries and keys, heads wider than hidden size / heads, tied embeddings.
    "qwen3": Qwen3Config(**DECODER, head_dim=32, tie_word_embeddings=True),
    # Each token sees the last WINDOW ones.
    "mistral": MistralConfig(**DECODER, sliding_window=WINDOW, tie_word_embeddings=False),
    # Scaled embeddings, two kinds of layers (the first sees WINDOW tokens) with two rotary bases.
    "gemma3_text": Gemma3TextConfig(
        **DECODER,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=True,
    ),
    # As most sizes are: norms before attention, embeddings as wide as the layers.
    "opt": OPTConfig(**_OPT, hidden_size=64, ffn_dim=128, word_embed_proj_dim=64),
    # As 350M is: norms after attention, embeddings narrower than the layers and projected.
    "opt_projected": OPTConfig(
        **_OPT, hidden_size=128, ffn_dim=192, word_embed_proj_dim=64, do_layer_norm_before=False
    ),
    # With its masked head; positions start behind the padding token's id.
    "roberta": RobertaConfig(
        **{**_COMMON, **_SIZES, "max_position_embeddings": 259}, type_vocab_size=1, tie_word_embeddings=True
    ),
}
#: Those of ARCHITECTURES that fill in masks instead of continuing a text.
MASKED = frozenset({"roberta"})
#: One by hand, one by autograd with LayerNorm and biases, one that fills in masks: CI tries these, a night all.
_IN_CI = ("llama", "opt", "roberta")


def families(names: Iterable[str] = ARCHITECTURES) -> list[Any]:
    """The parameters of a test that each of these families takes; those that CI tries carry its mark."""
    return [pytest.param(name, marks=pytest.mark.smoke if name in _IN_CI else ()) for name in names]


def random_model(config: PreTrainedConfig, *, is_mlm: bool = False) -> Any:
    """transformers' own model of `config` in float32, evaluation mode, no parameter of which is constant."""
    auto: Any = AutoModelForMaskedLM if is_mlm else AutoModelForCausalLM
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = auto.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def architecture_folder(name: str, path: Path) -> Path:
    """Write one of ARCHITECTURES as a Hugging Face folder, and return `path`."""
    is_mlm = name in MASKED
    save_with_tokenizer(random_model(ARCHITECTURES[name], is_mlm=is_mlm), path)
    if is_mlm:
        masking_tokenizer().save_pretrained(path)
    return path


def imported_config(config: PreTrainedConfig, folder: Path, *, dtype: str = "float32") -> ModelFolder:
    """Import a random model of `config`, which is then in `folder`/source."""
    return import_and_open(save_with_tokenizer(random_model(config), folder / "source"), folder / "models", dtype=dtype)


def dense_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that an imported folder stands for, in float32 where it is packed, else as it is stored."""
    stored = load_file(folder / WEIGHTS_NAME)
    dense = {}
    for name, tensor in stored.items():
        if name.endswith((SCALES, MINIMA)):
            continue
        parts = {suffix: stored[name + suffix] for suffix in ("", SCALES, MINIMA) if name + suffix in stored}
        if SCALES not in parts:
            dense[name] = tensor
            continue
        rows, groups = parts[SCALES].shape
        dense[name] = unpack(parts, torch.empty(rows, groups * GROUPS["int4" if MINIMA in parts else "int8"]))
    return dense
