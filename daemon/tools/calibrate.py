"""Calibrates a model in a child process: `python -m pocketllm.daemon.tools.calibrate FOLDER` prints a line of JSON.

A fresh process, since the memory of a worker's libraries is measured too, and since a broken model may crash it.
"""

import gc
import importlib
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pocketllm.daemon.child import answer, answer_of
from pocketllm.daemon.errors import ChildFailed
from pocketllm.daemon.process_memory import bytes_of, give_back_free_memory

#: Its name in /proc/self/status -> its key in a calibration.
_RESIDENT = {"RssAnon": "library_anonymous_bytes", "RssFile": "library_file_bytes"}


def measure(folder: Path) -> dict[str, Any]:
    """Calibrate the imported model in `folder`: engine.planning.calibration.Calibration as JSON, with library memory,
    and the machine that it was measured on.

    Raises ChildFailed with the reason.
    """
    return answer_of("calibrate", folder, refused=ChildFailed)


def this_machine() -> str:
    """The processor's architecture, and the torch: with another one, speed and memory are others."""
    return f"{platform.machine()} with torch {version('torch')}"


def calibrated() -> dict[str, Any]:
    """What `measure` returns, of the model that this process was started for. Raises EngineError."""
    # Here, since callers of `measure` need none of it.
    import torch

    from pocketllm.engine.formats.model_folder import open_model_folder
    from pocketllm.engine.planning.calibration import calibrate

    importlib.import_module("pocketllm.daemon.training.worker")  # whose libraries are measured
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as a worker does
    found = asdict(calibrate(open_model_folder(Path(sys.argv[1])), time.perf_counter))
    # Only now, since libraries take memory at their first use too: SmolLM2's forward pass left 60 MB.
    gc.collect()
    give_back_free_memory()
    return found | resident_bytes() | {"machine": this_machine()}


def resident_bytes() -> dict[str, int]:
    """This process's anonymous and file-backed resident memory in bytes, as far as known."""
    sizes = {name: bytes_of(line) for line, name in _RESIDENT.items()}
    return {name: size for name, size in sizes.items() if size is not None}


if __name__ == "__main__":
    answer(calibrated)
