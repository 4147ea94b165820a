"""A hard limit on the memory of a process, set by the kernel: cgroups of version 1 or 2.

The pages of the files that the process reads first count as well, which is the point: they can be dropped and read
again, so a process survives a limit below what it maps, and how far below is worth knowing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_REMOVALS = 50  # tries
_REMOVAL_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Group:
    """A cgroup that is there as long as `limited` is entered."""

    folder: Path
    peak_name: str  #: the file that says the most that was ever charged

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in this group, from its first instruction on."""
        # "0" is whoever writes it: the shell, which the command then replaces.
        script = 'echo 0 > "$0" && exec "$@"'
        return ["/bin/sh", "-c", script, str(self.folder / "cgroup.procs"), *command]

    def peak_bytes(self) -> int | None:
        """The most that was charged at a time, file pages included; None on a kernel that does not keep it."""
        try:
            return int((self.folder / self.peak_name).read_text())
        except (OSError, ValueError):
            return None


def can_limit() -> bool:
    """Whether memory cgroups can be written here: usually by root alone."""
    try:
        with limited(1 << 30):
            return True
    except OSError:
        return False


@contextmanager
def limited(limit_bytes: int) -> Iterator[Group]:
    """A group whose processes together get at most `limit_bytes`, and no swap beyond it.

    Raises OSError where none can be made. The group is removed at the end, whatever happens.
    """
    version_1 = (_ROOT / "memory" / "memory.limit_in_bytes").exists()
    parent = _ROOT / "memory" if version_1 else _ROOT
    folder = parent / f"pocketllm-bench-{os.getpid()}"
    folder.mkdir()
    try:
        if version_1:
            _set(folder / "memory.limit_in_bytes", limit_bytes)
            # Memory and swap together. Absent when the kernel does not count swap.
            _set_if_there(folder / "memory.memsw.limit_in_bytes", limit_bytes)
        else:
            _set(folder / "memory.max", limit_bytes)
            _set_if_there(folder / "memory.swap.max", 0)
        yield Group(folder=folder, peak_name="memory.max_usage_in_bytes" if version_1 else "memory.peak")
    finally:
        _remove(folder)


def _set(file: Path, value: int) -> None:
    # Not write_text: opening for writing creates, and in a folder that is no cgroup that would look like success.
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _set_if_there(file: Path, value: int) -> None:
    with suppress(FileNotFoundError):
        _set(file, value)


def _remove(folder: Path) -> None:
    """The kernel may need a moment after the last process has gone."""
    for _ in range(_REMOVALS):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(_REMOVAL_PAUSE_SECONDS)
        else:
            return
    folder.rmdir()
