"""Real models of a few thousand parameters, in each of the formats that can be imported."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.streamed.weights import open_weights

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
#: A prompt for `logits`.
IDS = torch.tensor([[5, 60, 70, 80, 100, 200, 1, 2]])
#: Three special tokens and a token a byte.
VOCABULARY = len(SPECIAL_TOKENS) + 256
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: What a GGUF file says of its model as llama.cpp's converter writes it, by transformers' names.
_GGUF_SETTINGS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "head_count",
    "num_key_value_heads": "head_count_kv",
    "rms_norm_eps": "layer_norm_rms_eps",
    "head_dim": "key_length",
    "vocab_size": "vocab_size",
}


def byte_tokens() -> list[str]:
    """The vocabulary by token id."""
    return [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, SmolLM2's special tokens and its chat template."""
    vocabulary = {token: number for number, token in enumerate(byte_tokens())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def beginning_with(token: str) -> PreTrainedTokenizerFast:
    """The same, but it puts this token before every text, as Gemma's and Llama 3's do."""
    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids(token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, number)]
    )
    return tokenizer


def tiny_llama_folder(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = VOCABULARY,
    tied: bool = True,
    shard_size: str = "5GB",
) -> Path:
    """Write a random Llama in float32 with its tokenizer as a Hugging Face folder, and return `path`.

    `hidden` is a multiple of 32, `vocab` at least VOCABULARY; a small `shard_size` splits the weights.
    """
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # Large enough that a wrong weight shows in the logits.
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return save_with_tokenizer(model, path, max_shard_size=shard_size)


def save_with_tokenizer(model: Any, path: Path, **settings: Any) -> Path:
    """Write transformers' model and the byte tokenizer as a Hugging Face folder, and return `path`."""
    model.save_pretrained(path, **settings)
    byte_tokenizer().save_pretrained(path)
    return path


def import_and_open(source: Path, models_dir: Path, **settings: Any) -> ModelFolder:
    """Import a Hugging Face folder or a GGUF file, and open what was made of it. settings: import_model's."""
    return open_model_folder(models_dir / import_model(str(source), models_dir, **settings).name)


def loud_llama_folder(path: Path, *, factor: float) -> Path:
    """Write a `tiny_llama_folder` whose feed-forward layers compute with numbers `factor` squared as large."""

    def louder(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".gate_proj." in name or ".up_proj." in name:
                tensor *= factor

    edit_tensors(tiny_llama_folder(path) / "model.safetensors", louder)
    return path


def tiny_model_folder(models_dir: Path, name: str = "tiny", *, dtype: str = "bfloat16", **shape: Any) -> Path:
    """Import a `tiny_llama_folder` into `models_dir` and return the model folder. shape: see there."""
    with tempfile.TemporaryDirectory() as scratch:
        source = tiny_llama_folder(Path(scratch) / "source", **shape)
        import_model(str(source), models_dir, name=name, dtype=dtype)
    return models_dir / name


def write_tiny_gguf(
    path: Path,
    hf_folder: Path,
    *,
    more: Mapping[str, NDArray[np.float32]] | None = None,
    scaling: Mapping[str, str | float] | None = None,
) -> Path:
    """Write the tied model of a `tiny_llama_folder` as GGUF, as llama.cpp's converter would, and return `path`.

    Vectors are F32, matrices F16, and the embeddings Q8_0. more: tensors under GGUF's names. scaling: of rotations.
    """
    config = json.loads((hf_folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf_writer(path, "llama", config)
    writer.add_license("apache-2.0")
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    for name, tensor in load_file(hf_folder / "model.safetensors").items():
        numbers: NDArray[np.float32] = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            numbers = permute(numbers, heads if ".q_proj." in name else kv_heads)
        _add_tensor(writer, gguf_name(name), numbers)
    for name, numbers in (more or {}).items():
        writer.add_tensor(name, numbers)
    for name, value in (scaling or {}).items():
        key = f"llama.rope.scaling.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_float32(key, value)
    return write_out(writer, path)


def gguf_writer(path: Path, architecture: str, config: Mapping[str, Any]) -> gguf.GGUFWriter:
    """One to which only the tensors must be added. config: of a model with the byte tokenizer, as in config.json."""
    writer = gguf.GGUFWriter(path, architecture)
    for setting, name in _GGUF_SETTINGS.items():
        if config.get(setting) is not None:
            getattr(writer, f"add_{name}")(config[setting])
    writer.add_rope_freq_base(10_000.0)
    _add_tokenizer(writer, config["vocab_size"])
    return writer


def write_out(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Put the byte tokenizer into a GGUF file, with `vocab` tokens."""
    tokens = byte_tokens()
    tokens += [f"[PAD{number}]" for number in range(len(tokens), vocab)]
    special = [token in SPECIAL_TOKENS for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if s else gguf.TokenType.NORMAL for s in special])
    # GGUF cannot say "no merges", and with scores and no merges transformers finds that there are none.
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensor(writer: gguf.GGUFWriter, name: str, numbers: NDArray[np.float32]) -> None:
    kind = gguf.GGMLQuantizationType
    if name == "token_embd.weight":
        writer.add_tensor(name, gguf.quantize(numbers, kind.Q8_0), raw_dtype=kind.Q8_0)
    else:
        writer.add_tensor(name, numbers if numbers.ndim == 1 else numbers.astype(np.float16))


def permute(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Pair the rows of each head as llama.cpp's rotary embedding wants them (convert_hf_to_gguf.py)."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of a Llama or one of its kin."""
    parts = {
        "model.embed_tokens": "token_embd",
        "lm_head": "output",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for part, short in parts.items():
        name = name.replace(part, short)
    return name


def logits(folder: Path, **settings: Any) -> torch.Tensor:
    """What transformers makes of the model in `folder`, given one fixed prompt."""
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        result: torch.Tensor = load(folder, **settings)(IDS).logits
    return result


def edit_json(path: Path, **values: Any) -> None:
    """Change settings of a JSON file; None removes one."""
    settings = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def mapped(model_folder: ModelFolder) -> dict[str, torch.Tensor]:
    """Every tensor of a model's weights file, scales too, mapped as the model maps it."""
    weights = open_weights(model_folder.weights)
    return {name + suffix: part for name, weight in weights.items() for suffix, part in weight.parts.items()}
