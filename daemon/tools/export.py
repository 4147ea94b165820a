"""Exports an adapter for llama.cpp in a child process: python -m pocketllm.daemon.tools.export ADAPTER MODEL FILE KIND.

The libraries for that would stay in the daemon's memory, a fifth of what it takes.
"""

import sys
from pathlib import Path
from typing import Any

from pocketllm.daemon.child import answer, answer_of
from pocketllm.engine.errors import CannotExport


def export_gguf(adapter: Path, model: Path, destination: Path, *, merged: bool = False) -> None:
    """Write an adapter (its folder), trained on a model (its folder), as a GGUF LoRA file, or merged into the model's
    file: engine/formats/gguf_lora.py, gguf_merged.py.

    Raises CannotExport with the reason when there can be no such file, and ChildFailed when the process fails.
    """
    answer_of("export", adapter, model, destination, "merged" if merged else "lora", refused=CannotExport)


def export() -> dict[str, Any]:
    """Write the file that this process was started for. Raises EngineError."""
    # Imported here, since callers of `export_gguf` do not need it.
    from pocketllm.engine.formats.gguf_lora import write_gguf_lora
    from pocketllm.engine.formats.gguf_merged import write_merged_gguf
    from pocketllm.engine.formats.model_folder import open_model_folder

    adapter, model, destination, kind = sys.argv[1:]
    write = write_merged_gguf if kind == "merged" else write_gguf_lora
    write(Path(adapter), open_model_folder(Path(model)), Path(destination))
    return {}


if __name__ == "__main__":
    answer(export)
