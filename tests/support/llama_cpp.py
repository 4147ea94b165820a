"""llama.cpp itself, in this process (the package xllamacpp), and base files of tiny models for it."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from pocketllm.engine.formats.model_folder import ModelFolder
from tests.support.models.tiny_architectures import dense_tensors
from tests.support.models.tiny_models import byte_tokens, gguf_name, gguf_writer, permute, write_out


def write_base(path: Path, model_folder: ModelFolder, architecture: str) -> Path:
    """Write an imported model in float32 as the GGUF file that llama.cpp's converter would make; returns `path`."""
    config = json.loads((model_folder.path / "config.json").read_text())
    writer = gguf_writer(path, architecture, config)
    if config.get("head_dim"):
        writer.add_value_length(config["head_dim"])
    writer.add_token_merges(["a b"])  # llama.cpp wants some
    for name, tensor in dense_tensors(model_folder.path).items():
        writer.add_tensor(_name(name, architecture), _rearranged(name, tensor.float().numpy(), architecture, config))
    return write_out(writer, path)


def _name(name: str, architecture: str) -> str:
    """By gguf's own table: families have norms in other places."""
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    path, _, kind = name.rpartition(".")
    found: str | None = gguf.get_tensor_name_map(number, 9).get_name(path)
    return f"{found}.{kind}" if found else gguf_name(name)


def _rearranged(
    name: str, numbers: NDArray[np.float32], architecture: str, config: dict[str, Any]
) -> NDArray[np.float32]:
    if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
        return permute(numbers, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
    return numbers


def next_log_probabilities(base: Path, ids: Sequence[int], *, lora: Path | None = None) -> NDArray[np.float64]:
    """llama.cpp's own for each token behind the prompt; raises RuntimeError when it cannot load the files."""
    xl: Any = importlib.import_module("xllamacpp")
    params = xl.CommonParams()
    params.model.path = str(base)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.n_gpu_layers = 64, 1, 1, 0
    params.warmup, params.verbosity = False, 0
    # As exactly as it can.
    params.cache_type_k = params.cache_type_v = xl.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xl.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora is not None:
        info = xl.CommonAdapterLoraInfo()
        info.path, info.scale = str(lora), 1.0
        params.lora_adapters = [info]
    # Only with text that is whole does it tell the probabilities. They are those from before the bias.
    letter = byte_tokens().index("W")
    requested = {"prompt": list(ids), "n_predict": 1, "n_probs": 1 << 16, "temperature": 0}
    answer = xl.Server(params).handle_completions(requested | {"logit_bias": [[letter, 1e3]]})
    found = {one["id"]: one["logprob"] for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    return np.array([found[token] for token in range(len(found))])
