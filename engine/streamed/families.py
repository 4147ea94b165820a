"""Which layers pocketllm.backprop and decoding compute by hand. Torch-free: planning asks, too."""

from collections.abc import Callable
from typing import Any

#: The linear maps of a layer of Llama's kind.
LLAMA_MAPS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
#: transformers' model types whose layers are of Llama's kind -> the activation in them. Others have the same parts and
#: compute something else.
LLAMA_FAMILIES = {**dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), "silu"), "gemma3_text": "gelu_pytorch_tanh"}


def is_of_llamas_kind(setting: Callable[[str, None], Any]) -> bool:
    """Whether a model's layers compute what backprop.llama_layer and streamed.decoding do. setting: of its config."""
    activation = LLAMA_FAMILIES.get(setting("model_type", None))
    return activation is not None and activation in (setting("hidden_act", None), setting("hidden_activation", None))
