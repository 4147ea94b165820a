"""A hard limit on the memory of a process, set by the kernel: cgroups of version 1 or 2.

The pages of the files that the process reads first count as well, which is the point: they can be dropped and read
again, so a process survives a limit below what it maps, and how far below is worth knowing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_REMOVALS = 50  # tries
_REMOVAL_PAUSE_SECONDS = 0.1
#: Starts a command in the group whose `cgroup.procs` is $0. "0" is whoever writes it: the shell, which the command then
#: replaces.
_SCRIPT = 'echo 0 > "$0" && exec "$@"'


def can_limit() -> bool:
    """Whether memory cgroups can be written here: usually by root alone."""
    try:
        with limited(1 << 30):
            return True
    except OSError:
        return False


@contextmanager
def limited(limit_bytes: int) -> Iterator[list[str]]:
    """A group whose processes together get at most `limit_bytes`, and no swap beyond it.

    Yields what stands in front of a command line so that it runs in the group, from its first instruction on. Raises
    OSError where no group can be made. It is removed at the end, whatever happens.
    """
    version_1 = (_ROOT / "memory" / "memory.limit_in_bytes").exists()
    folder = (_ROOT / "memory" if version_1 else _ROOT) / f"pocketllm-bench-{os.getpid()}"
    folder.mkdir()
    try:
        _set(folder / ("memory.limit_in_bytes" if version_1 else "memory.max"), limit_bytes)
        with suppress(FileNotFoundError):  # a kernel that does not count swap
            if version_1:  # memory and swap together
                _set(folder / "memory.memsw.limit_in_bytes", limit_bytes)
            else:
                _set(folder / "memory.swap.max", 0)
        yield ["/bin/sh", "-c", _SCRIPT, str(folder / "cgroup.procs")]
    finally:
        _remove(folder)


def _set(file: Path, value: int) -> None:
    # Not write_text: opening for writing creates, and in a folder that is no cgroup that would look like success.
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """The kernel may need a moment after the last process has gone."""
    for _ in range(_REMOVALS):
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(_REMOVAL_PAUSE_SECONDS)
    folder.rmdir()
