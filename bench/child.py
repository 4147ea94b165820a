"""What a measured process says of itself. Imports nothing that would count as its memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
