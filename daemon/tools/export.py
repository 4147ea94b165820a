"""Exports an adapter for llama.cpp in a child process: `python -m pocketllm.daemon.tools.export ADAPTER MODEL FILE`.

The libraries for that would stay in the daemon's memory, a fifth of what it takes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pocketllm.daemon.child_environment import last_words
from pocketllm.daemon.errors import ExportFailed
from pocketllm.engine.errors import CannotExport, MezoError

#: Usually it takes a second.
TIMEOUT_SECONDS = 300


def export_gguf(adapter: Path, model: Path, destination: Path, *, merged: bool = False) -> None:
    """Write an adapter (its folder), trained on a model (its folder), as a GGUF LoRA file, or merged into the model's
    file: engine/formats/gguf_lora.py, gguf_merged.py.

    Raises CannotExport with the reason when there can be no such file, and ExportFailed when the process fails.
    """
    command = [sys.executable, "-m", "pocketllm.daemon.tools.export", str(adapter), str(model), str(destination)]
    command += ["--merged"] if merged else []
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ExportFailed(f"The export took more than {TIMEOUT_SECONDS} seconds. Try again.") from error
    except OSError as error:
        raise ExportFailed(f"The export process could not start: {error}. Try again.") from error
    if done.returncode == os.EX_DATAERR:
        raise CannotExport(json.loads(done.stdout)["error"])
    if done.returncode:
        ended = f"code {done.returncode}: {last_words(done.stderr)}"
        raise ExportFailed(f"The export process exited with {ended}. Check the free disk space, then try again.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one file, or print {"error": the reason}."""
    parser = argparse.ArgumentParser(description="Writes an adapter as GGUF for a PocketLLM daemon, which starts it.")
    for name in ("adapter", "model", "destination"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--merged", action="store_true")
    options = parser.parse_args(arguments)

    # Imported here, since callers of `export_gguf` do not need it.
    from pocketllm.engine.formats.gguf_lora import write_gguf_lora
    from pocketllm.engine.formats.gguf_merged import write_merged_gguf
    from pocketllm.engine.formats.model_folder import open_model_folder

    write = write_merged_gguf if options.merged else write_gguf_lora
    try:
        write(options.adapter, open_model_folder(options.model), options.destination)
    except MezoError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return os.EX_DATAERR
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
