"""The model folder: a Hugging Face folder whose weights are mapped into memory.

Nothing here imports torch or transformers before `config` or `tokenizer` is called, so that a
process that only lists models stays small.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, Field, PositiveInt, ValidationError

from pocketllm.engine.errors import ModelFileError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

MANIFEST_NAME = "pocketllm.json"
WEIGHTS_NAME = "model.safetensors"
FLOAT_DTYPES = ("bfloat16", "float16", "float32")
#: transformers' model types that are tested each night against transformers' loss and autograd's gradients.
TESTED_FAMILIES = (
    *("apertus", "arcee", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "granite", "helium", "llama"),
    *("minicpm3", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "roberta"),
    *("seed_oss", "smollm3", "starcoder2"),
)
#: How weights may be stored; the last two are the packings of engine/formats/quantization.py.
DTYPES = (*FLOAT_DTYPES, "int8", "int4")
#: A model's name: safe as a folder name, in a URL and on a command line.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Manifest(BaseModel, frozen=True, strict=True):
    """The description of an imported model; stored in its folder as pocketllm.json."""

    format: Literal[1] = 1  #: version of this file's layout
    name: str = Field(pattern=f"^{NAME_PATTERN.pattern}$")  #: the folder's name
    source: str  #: the file, folder or hub id that it was imported from
    license: str  #: the licence's name, or "unknown"
    architecture: str  #: class in transformers, such as "LlamaForCausalLM"
    model_type: str  #: family in transformers, such as "llama"
    parameters: PositiveInt  #: tied ones counted once
    dtype: str = Field(pattern=f"^({'|'.join(DTYPES)})$")  #: of the weights on disk
    weights_bytes: PositiveInt  #: size of model.safetensors
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")  #: of model.safetensors
    created_at: AwareDatetime  #: when the import ended
    #: Of packed weights against the source's, relative RMS; None: no packing.
    quantization_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    #: Of the layers' computation.
    compute_dtype: str = Field(default="bfloat16", pattern=f"^({'|'.join(FLOAT_DTYPES)})$")
    calibration: dict[str, Any] | None = None  #: the measurements of the whole model; JSON
    gguf: dict[str, Any] | None = None  #: the GGUF file it came from (gguf_origin.py); None: another source

    @property
    def is_mlm(self) -> bool:
        """Whether the model fills in masks (a masked language model) instead of continuing a text."""
        return self.architecture.endswith("ForMaskedLM")

    def to_json(self) -> str:
        """The manifest as the text of pocketllm.json."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True)
class ModelFolder:
    """An imported model on disk. Opening it reads the manifest alone; weights.open_weights maps the weights."""

    path: Path
    manifest: Manifest

    @property
    def weights(self) -> Path:
        """The path of the weights file."""
        return self.path / WEIGHTS_NAME

    def config(self) -> PreTrainedConfig:
        """The model's transformers config, read on each call. Raises ModelFileError when it is broken."""
        from transformers import AutoConfig

        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a setting of the wrong type may fail anywhere in transformers
            raise ModelFileError(
                f"{self.path / 'config.json'} cannot be used: {error}. Import the model again."
            ) from error
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, read on each call. Raises ModelFileError when it is broken."""
        return load_tokenizer(self.path)


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hex; reads all of it. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_model_folder(folder: Path, *, verify: bool = False) -> ModelFolder:
    """Return the imported model in `folder`; with `verify`, read all its weights and compare their hash.

    Raises ModelFileError when there is none, and ModelFileError when its manifest is broken, its weights file
    has another size than at import, or (`verify`) other content.
    """
    path = folder / MANIFEST_NAME
    try:
        model = ModelFolder(folder, Manifest.model_validate_json(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelFileError(f"There is no model in {folder}. Run `pocketllm models add` to import one.") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise ModelFileError(f"{path} is broken: {problem}. Import the model again.") from error
    path, manifest = model.weights, model.manifest
    try:
        size = path.stat().st_size
        if size != manifest.weights_bytes:
            raise ModelFileError(
                f"{path} is {size} bytes, not {manifest.weights_bytes} as imported. Import the model again."
            )
        if verify and sha256_of(path) != manifest.weights_sha256:
            raise ModelFileError(f"{path} has changed since the import (its hash differs). Import it again.")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}. Import the model again.") from error
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `folder`. Raises ModelFileError when there is none or it is broken."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the parser is native code, which raises bare Exception
        raise ModelFileError(f"The tokenizer in {folder} cannot be used: {error}. Import the model again.") from error
    return tokenizer


def list_model_folders(models_dir: Path) -> list[ModelFolder]:
    """Return the imported models in `models_dir`, sorted by name; none when it does not exist.

    Unfinished imports, other folders and broken models are left out; `open_model_folder` says what is wrong.
    """
    if not models_dir.is_dir():
        return []
    models = []
    for folder in sorted(models_dir.iterdir()):
        if not NAME_PATTERN.fullmatch(folder.name):
            continue
        try:
            models.append(open_model_folder(folder))
        except ModelFileError:
            continue
    return models
