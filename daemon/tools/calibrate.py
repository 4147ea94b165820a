"""Calibrates a model in a child process: `python -m pocketllm.daemon.tools.calibrate FOLDER` prints a line of JSON.

A fresh process, since the memory of a worker's libraries is measured too, and since a broken model may crash it.
"""

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocketllm.daemon.child_environment import child_environment, last_words
from pocketllm.daemon.errors import CalibrationFailed
from pocketllm.daemon.process_memory import give_back_free_memory

#: For the largest models on the slowest phones; usually it takes a few seconds.
TIMEOUT_SECONDS = 1800
_STATUS = Path("/proc/self/status")
#: Line of /proc/self/status -> its key in a calibration.
_RESIDENT = {"RssAnon": "library_anonymous_bytes", "RssFile": "library_file_bytes"}


def measure(folder: Path) -> dict[str, Any]:
    """Calibrate the imported model in `folder`: engine.planning.calibration.Calibration as JSON, with library memory.

    Raises CalibrationFailed with the reason.
    """
    command = [sys.executable, "-m", "pocketllm.daemon.tools.calibrate", str(folder)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=child_environment(), timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise CalibrationFailed(f"Calibrating the model took more than {TIMEOUT_SECONDS} seconds.") from error
    except OSError as error:
        raise CalibrationFailed(f"The calibration process could not start: {error}.") from error
    if done.returncode < 0:
        raise CalibrationFailed(
            f"The calibration process was killed by signal {-done.returncode}, perhaps because memory ran out."
        )
    if done.returncode:
        raise CalibrationFailed(f"Calibrating the model failed: {last_words(done.stderr)}.")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in answer:
        raise CalibrationFailed(answer["error"])
    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrate one model and print the result, or {"error": the reason}."""
    parser = argparse.ArgumentParser(description="Calibrates a model for PocketLLM, which starts it.")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)

    # Here, since callers of `measure` need none of it.
    import torch

    from pocketllm.engine.errors import MezoError
    from pocketllm.engine.formats.model_folder import open_model_folder
    from pocketllm.engine.planning.calibration import calibrate

    importlib.import_module("pocketllm.daemon.training.worker")  # whose libraries are measured
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as a worker does
    try:
        answer = asdict(calibrate(open_model_folder(options.folder), time.perf_counter))
        # Only now, since libraries take memory at their first use too: SmolLM2's forward pass left 60 MB.
        gc.collect()
        give_back_free_memory()
        answer |= resident_bytes()
    except MezoError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return os.EX_OK


def resident_bytes() -> dict[str, int]:
    """This process's anonymous and file-backed resident memory in bytes; empty if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return {name: int(lines[line].removesuffix("kB").strip()) * 1024 for line, name in _RESIDENT.items()}
    except (OSError, KeyError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main())
