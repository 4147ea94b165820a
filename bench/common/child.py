"""A function of a bench in a process of its own, and what that process says of itself.

python -m bench.common.child MODULE FUNCTION ARGUMENTS [--turns]

ARGUMENTS is a JSON object of keyword arguments. The function's result, a JSON object as well, is printed as one line.
With --turns the function returns a step, and each line of stdin is a turn (turns.py). Imports nothing that would count
as the function's memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


def command(module: str, function: str, *more: str, **arguments: Any) -> list[str]:
    """The command line that calls a function of a module. Paths become strings."""
    return [sys.executable, "-m", "bench.common.child", module, function, json.dumps(arguments, default=str), *more]


def write_line(values: Mapping[str, Any]) -> None:
    """One line of JSON on stdout, for whoever started this process."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def memory_of(pid: int | None = None) -> dict[str, int]:
    """A process's (None: this one's) "VmHWM", "RssAnon" and the like, in bytes.

    Empty for a process that is gone, and on a system without /proc/PID/status.
    """
    return _sizes(Path(f"/proc/{pid or 'self'}/status"))


def available_bytes() -> int:
    """How much memory new work could take here without swapping; 0 when the system does not say."""
    return _sizes(Path("/proc/meminfo")).get("MemAvailable", 0)


def _sizes(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ProcessLookupError):
        return {}
    sizes = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in sizes}


def _serve(step: Callable[[], object]) -> None:
    """Take a turn for each line of stdin: two steps, of which the second is timed.

    In training a step follows a step, while the first one after a pause finds the caches cold. A step that returns a
    dict has measured itself: that is the answer, and there is no second one.
    """
    for _ in sys.stdin:
        answer = step()
        if not isinstance(answer, dict):
            began = time.perf_counter()
            step()
            answer = {"seconds": time.perf_counter() - began}
        write_line(answer)


def main() -> None:
    """Call the function."""
    module, function, arguments, *turns = sys.argv[1:]
    found = getattr(import_module(module), function)(**json.loads(arguments))
    if turns:
        _serve(found)
    elif found is not None:
        write_line(found)


if __name__ == "__main__":
    main()
