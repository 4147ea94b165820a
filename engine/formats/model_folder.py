"""The model folder: a Hugging Face folder whose weights are mapped into memory.

Nothing here imports torch or transformers before `config` or `tokenizer` is called, so that a
process that only lists models stays small.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import MISSING, Field, asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pocketllm.engine.errors import ModelFileError, ModelNotFound

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

MANIFEST_NAME = "pocketllm.json"
WEIGHTS_NAME = "model.safetensors"
MANIFEST_FORMAT = 1
FLOAT_DTYPES = ("bfloat16", "float16", "float32")
#: How weights may be stored; the last two are the packings of engine/streamed/quantization.py.
DTYPES = (*FLOAT_DTYPES, "int8", "int4")
#: A model's name: safe as a folder name, in a URL and on a command line.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HASH_PATTERN = re.compile(r"[0-9a-f]{64}")
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of an imported model; stored in its folder as pocketllm.json."""

    format: int = MANIFEST_FORMAT  #: version of this file's layout
    name: str  #: the folder's name
    source: str  #: the file, folder or hub id that it was imported from
    license: str  #: the licence's name, or "unknown"
    architecture: str  #: class in transformers, such as "LlamaForCausalLM"
    model_type: str  #: family in transformers, such as "llama"
    parameters: int  #: tied ones counted once
    dtype: str  #: of the weights on disk, one of DTYPES
    weights_bytes: int  #: size of model.safetensors
    weights_sha256: str  #: of model.safetensors, in hex
    created_at: datetime  #: when the import ended; aware, UTC
    # Folders written by older versions lack these.
    quantization_error: float | None = None  #: of packed weights against the source's, relative RMS; None: no packing
    compute_dtype: str = "bfloat16"  #: of the layers' computation, one of FLOAT_DTYPES
    calibration: dict[str, Any] | None = None  #: the measurements of the whole model; JSON
    gguf: dict[str, Any] | None = None  #: the GGUF file it came from (gguf_origin.py); None: another source

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not _is_of_type(value, str(field.type)):
                raise ValueError(f"{field.name} is {value!r}; it must be of type {field.type}")
        if self.format != MANIFEST_FORMAT:
            raise ValueError(f"format is {self.format}; this version of PocketLLM reads {MANIFEST_FORMAT}")
        if not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}; it must match {NAME_PATTERN.pattern}")
        for name, allowed in (("dtype", DTYPES), ("compute_dtype", FLOAT_DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.quantization_error is not None and not 0 <= self.quantization_error < math.inf:
            raise ValueError(f"quantization_error is {self.quantization_error}; it must be finite and not negative")
        if not _HASH_PATTERN.fullmatch(self.weights_sha256):
            raise ValueError(f"weights_sha256 is {self.weights_sha256!r}; it must be 64 hex digits")
        if self.parameters < 1 or self.weights_bytes < 1:
            raise ValueError("parameters and weights_bytes must be positive")
        if self.created_at.tzinfo is None:
            raise ValueError(f"created_at is {self.created_at}; it needs a time zone")

    @property
    def is_mlm(self) -> bool:
        """Whether the model fills in masks (a masked language model) instead of continuing a text."""
        return self.architecture.endswith("ForMaskedLM")

    def to_json(self) -> str:
        """The manifest as the text of pocketllm.json."""
        created_at = self.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return json.dumps(asdict(self) | {"created_at": created_at}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote. Raises ValueError naming the field that is missing or wrong."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        if values.get("dtype") in FLOAT_DTYPES:
            # In versions without compute_dtype, layers computed in the stored dtype.
            values.setdefault("compute_dtype", values["dtype"])
        missing = [field.name for field in fields(cls) if field.name not in values and _is_required(field)]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        if not isinstance(values["created_at"], str):
            raise ValueError(f"created_at is {values['created_at']!r}; it must be a string")
        values["created_at"] = datetime.fromisoformat(values["created_at"])
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def _is_required(field: Field[Any]) -> bool:
    """Whether every manifest has this field; `format` is required to tell the version."""
    return field.default is MISSING or field.name == "format"


def _is_of_type(value: object, annotation: str) -> bool:
    """Whether a value's type is one that an annotation such as "dict[str, Any] | None" names."""
    # By name, since True is an int to isinstance.
    name = "None" if value is None else type(value).__name__
    return name in [kind.partition("[")[0] for kind in annotation.split(" | ")]


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


def open_model_folder(folder: Path, *, verify: bool = False) -> ModelFolder:
    """Return the imported model in `folder`; with `verify`, read all its weights and compare their hash.

    Raises ModelNotFound when there is none, and ModelFileError when its manifest is broken, its weights file
    has another size than at import, or (`verify`) other content.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(f"There is no model in {folder}. Run `pocketllm models add` to import one.") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    try:
        model = ModelFolder(folder, Manifest.from_json(text))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is broken: {error}. Import the model again.") from error
    _check_weights(model, verify)
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
        except (ModelNotFound, ModelFileError):
            continue
    return models


def _check_weights(model: ModelFolder, verify: bool) -> None:
    path, manifest = model.weights, model.manifest
    try:
        size = path.stat().st_size
        if size != manifest.weights_bytes:
            raise ModelFileError(
                f"{path} is {size} bytes, not {manifest.weights_bytes} as imported. Import the model again."
            )
        if verify and _sha256(path) != manifest.weights_sha256:
            raise ModelFileError(f"{path} has changed since the import (its hash differs). Import it again.")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}. Import the model again.") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
