"""What llama.cpp reads for an adapter: the adapter as a GGUF LoRA, and where it adapts a tied head, a base with one.

Both are made when they are first needed, and lie with what they were made from, whose end is theirs.
"""

import shutil
from pathlib import Path

from pocketllm.engine.formats.model_folder import ModelFolder

LORA_NAME = "adapter_model.gguf"
UNTIED_NAME = "untied.gguf"


def files_for(adapter: Path, model_folder: ModelFolder, base: Path) -> tuple[Path, Path]:
    """The adapter's file and its base's, made where they are missing.

    Raises CannotExport for an adapter that such a file cannot hold, AdapterError, ModelFileError, NotEnoughSpace, or
    OSError.
    """
    # With what they import this takes a quarter of a second, which the base model has no need to wait for.
    from pocketllm.engine.formats.gguf_lora import needs_untied_head, write_gguf_lora

    untied = needs_untied_head(adapter, model_folder)
    lora = adapter / LORA_NAME
    if not lora.exists():
        write_gguf_lora(adapter, model_folder, lora)
    return lora, _untied(model_folder, base) if untied else base


def _untied(model_folder: ModelFolder, base: Path) -> Path:
    """The base with an output head of its own, which it may have as it is."""
    from pocketllm.engine.formats.gguf_header import read_gguf_header
    from pocketllm.engine.formats.gguf_untied import EMBEDDINGS, HEAD, write_untied
    from pocketllm.engine.formats.importer import SPARE_BYTES, require_space

    made = model_folder.path / UNTIED_NAME
    if made.exists():
        return made
    tensors = read_gguf_header(base).tensors
    if HEAD in tensors:
        return base
    size = base.stat().st_size + (tensors[EMBEDDINGS].nbytes if EMBEDDINGS in tensors else 0)
    require_space(model_folder.path, size + SPARE_BYTES, shutil.disk_usage(model_folder.path).free)
    write_untied(base, made)
    return made
